"""The node package inside a process that has ComfyUI's modules but no running server."""

import sys

import pytest
from mmada_parallel.tests.hosts import find_host
from mmada_parallel.tests.nodes.untrained import write_untrained


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mmada_parallel"
    write_untrained(folder / "untrained")
    return folder


@pytest.fixture(scope="session")
def nodes(model_folder):
    """Our `nodes` package, its folders being `model_folder` alone and one beside it."""
    host = find_host("current")
    if problem := host.problem():
        pytest.skip(problem)
    sys.path.insert(0, str(host.path))  # before this folder, whose `nodes` is not ComfyUI's
    cli_args = pytest.importorskip("comfy.cli_args", reason="ComfyUI's requirements are missing")
    cli_args.args.cpu = True
    import folder_paths

    folder_paths.add_model_folder_path("mmada_parallel", "from/extra_model_paths")
    folder_paths.set_temp_directory(str(model_folder.parent / "temp"))
    import mmada_parallel.nodes

    folder_paths.folder_names_and_paths["mmada_parallel"][0].insert(0, str(model_folder))
    return mmada_parallel.nodes


@pytest.fixture(scope="session")
def host(nodes):
    return nodes.load.host


@pytest.fixture(scope="session")
def folders(nodes):
    return nodes.load.folders


@pytest.fixture
def training_folders(nodes):
    return nodes.dataset.training_folders


@pytest.fixture(scope="session")
def model(host):
    return host.load("untrained", "auto", "auto")


@pytest.fixture(scope="session")
def classes(nodes):
    """Our node classes by id."""
    import asyncio

    listed = asyncio.run(nodes.MMaDAParallelExtension().get_node_list())
    return {node.define_schema().node_id: node for node in listed}


@pytest.fixture(scope="session")
def run_node(classes):
    """``run_node("Denoise", **inputs)``: what that node gives."""

    def run(name, /, **inputs):
        return classes[f"MMaDAParallel{name}"].PREPARE_CLASS_CLONE(None).execute(**inputs)

    return run


@pytest.fixture(scope="session")
def encoded(run_node, model):
    def encode(image=None, width=0, height=0, text_length=0, mask=None):
        return run_node(
            "EncodeInstruction",
            model=model,
            image=image,
            mask=mask,
            width=width,
            height=height,
            instruction="remove the red star",
            text_length=text_length,
        )[0]

    return encode


@pytest.fixture(scope="session")
def denoised(run_node, model):
    defaults = {
        "text_steps": 0,
        "image_steps": 0,
        "joint_guidance": -1.0,
        "text_guidance": -1.0,
        "image_guidance": -1.0,
        "reasoning_guidance": -1.0,
        "batch_size": 1,
        "seed": 0,
        "preset": "corrected",
        "preview_every": 1,
        "text_temperature": 0.0,
        "order": "parallel",
        "image_temperature": 1.0,
        "remasking": "low_confidence",
        "record_steps": 128,
        "speed": "exact",
        "block_length": -1,
    }

    def denoise(prompt, **changes):
        return run_node("Denoise", **{"model": model, "prompt": prompt, **defaults, **changes})

    return denoise

"""What ComfyUI offers once the pack is in custom_nodes/: the contract of node ids and types."""

import pytest
from mmada_parallel.tests.hosts import PACK_FOLDER
from mmada_parallel.tests.workflow_api import WORKFLOWS

DISPLAY_NAMES = {
    "MMaDAParallelLoader": "Load MMaDA-Parallel",
    "MMaDAParallelEncodeInstruction": "Encode Instruction",
    "MMaDAParallelDenoise": "Parallel Denoise",
    "MMaDAParallelDecodeText": "Decode Text",
    "MMaDAParallelDecodeImage": "Decode Image",
}
OUTPUTS = {
    "MMaDAParallelLoader": "MMADA_MODEL",
    "MMaDAParallelEncodeInstruction": "MMADA_PROMPT",
    "MMaDAParallelDenoise": "MMADA_TOKENS",
    "MMaDAParallelDecodeText": "STRING",
    "MMaDAParallelDecodeImage": "IMAGE",
}
GRAPH_TYPES = {"MMADA_MODEL", "MMADA_PROMPT", "MMADA_TOKENS", "MMADA_TRAJECTORY", "MMADA_DATASET"}


def inputs_of(info):
    """Name, type and options of every input."""
    for group in ("required", "optional"):
        for name, declared in info["input"].get(group, {}).items():
            yield name, declared[0], (*declared, {})[1]


def choices(info):
    """The options of every combo."""
    for name, kind, options in inputs_of(info):
        if isinstance(kind, list) or kind == "COMBO":
            yield name, kind if isinstance(kind, list) else options["options"]


@pytest.fixture(scope="session")
def ours(comfy, object_info):
    """The nodes that came from the pack, by id."""
    module = f"custom_nodes.{PACK_FOLDER}"
    nodes = {k: v for k, v in object_info.items() if v["python_module"] == module}
    assert nodes, f"the pack has registered no node\n{comfy.log()[-3000:]}"
    return nodes


def test_the_pack_loads_without_complaint(comfy):
    lines = [line for line in comfy.log().splitlines() if PACK_FOLDER in line]
    assert any("seconds" in line for line in lines), comfy.log()[-3000:]
    assert not [line for line in lines if "IMPORT FAILED" in line or "Cannot import" in line]


@pytest.mark.parametrize("node_id", DISPLAY_NAMES)
def test_the_promised_nodes_are_there(ours, node_id):
    assert ours[node_id]["display_name"] == DISPLAY_NAMES[node_id]
    assert OUTPUTS[node_id] in ours[node_id]["output"]


def test_every_node_keeps_to_the_house_names(ours):
    for node_id, info in ours.items():
        assert node_id.startswith("MMaDAParallel")
        assert info["category"].split("/")[0] == "MMaDA-Parallel"
        assert info["description"], f"{node_id} has no description"
        kinds = {kind for _, kind, _ in inputs_of(info) if isinstance(kind, str)}
        own = {kind for kind in kinds | set(info["output"]) if kind.startswith("MMADA")}
        assert own <= GRAPH_TYPES


def test_every_input_and_output_has_a_tooltip(ours):
    bare = [
        f"{node_id}.{name}"
        for node_id, info in ours.items()
        for name, _, options in inputs_of(info)
        if not options.get("tooltip")
    ]
    for node_id, info in ours.items():
        tooltips = info.get("output_tooltips") or [None] * len(info["output"])
        pairs = zip(info["output_name"], tooltips, strict=True)
        bare += [f"{node_id} -> {name}" for name, tooltip in pairs if not tooltip]
    assert bare == []


def test_the_loader_offers_the_demo_first(ours):
    firsts = [options[0] for _, options in choices(ours["MMaDAParallelLoader"]) if options]
    assert "demo" in firsts


def test_checkpoints_in_the_model_folder_are_offered(comfy):
    assert "mmada_parallel" in comfy.get("/models")
    folder = comfy.base / "models" / "mmada_parallel"
    (folder / "sharded").mkdir(parents=True)
    (folder / "sharded" / "config.json").write_text("{}")
    (folder / "single.safetensors").write_bytes(b"")
    offered = {
        str(option).removesuffix(".safetensors")
        for _, options in choices(comfy.object_info()["MMaDAParallelLoader"])
        for option in options
    }
    assert {"demo", "sharded", "single"} <= offered


def test_the_seed_can_change_by_itself(ours):
    seeds = {n: o for n, _, o in inputs_of(ours["MMaDAParallelDenoise"]) if "seed" in n}
    assert any(options.get("control_after_generate") for options in seeds.values())


def test_the_templates_are_listed_with_thumbnails(comfy):
    listed = comfy.get("/workflow_templates")[PACK_FOLDER]
    assert sorted(listed) == sorted(w.stem for w in WORKFLOWS)
    for workflow in WORKFLOWS:
        assert workflow.with_suffix(".jpg").is_file(), f"{workflow.name} has no thumbnail"

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
    """Our `nodes` package, its model folder being `model_folder` alone."""
    host = find_host("current")
    if problem := host.problem():
        pytest.skip(problem)
    sys.path.insert(0, str(host.path))  # before this folder, whose `nodes` is not ComfyUI's
    cli_args = pytest.importorskip("comfy.cli_args", reason="ComfyUI's requirements are missing")
    cli_args.args.cpu = True
    import folder_paths

    folder_paths.add_model_folder_path("mmada_parallel", "from/extra_model_paths")
    import mmada_parallel.nodes

    folder_paths.folder_names_and_paths["mmada_parallel"][0].insert(0, str(model_folder))
    return mmada_parallel.nodes


@pytest.fixture(scope="session")
def host(nodes):
    return nodes.load.host


@pytest.fixture(scope="session")
def model(host):
    return host.load("untrained", "auto", "auto")

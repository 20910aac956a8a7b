"""Two ComfyUI processes on the same folders, which edit, train and convert at the same time."""

import copy
from contextlib import ExitStack

import pytest
from mmada_parallel.benchmarks.soak import prompts
from mmada_parallel.mmp_core.checkpoint.inspect import inspect_checkpoint
from mmada_parallel.tests.hosts import ComfyServer, HostUnavailable, find_host
from safetensors.torch import load_file

pytestmark = pytest.mark.exhaustive
SENTENCES = ("InputError", "CheckpointError")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with ExitStack() as stack:
        try:
            first = stack.enter_context(ComfyServer(find_host("current"), folder / "shared"))
            shared = ("--base-directory", str(first.base))  # the last one counts
            second = ComfyServer(find_host("current"), folder / "second", options=shared)
            stack.enter_context(second)
        except HostUnavailable as reason:
            pytest.skip(str(reason))
        yield first, second


@pytest.fixture(scope="module")
def queue(servers):
    queue = prompts(servers[0].object_info())
    edit = queue["edit"]
    (loader,) = (k for k, node in edit.items() if node["class_type"] == "MMaDAParallelLoader")
    (denoise,) = (k for k, node in edit.items() if node["class_type"] == "MMaDAParallelDenoise")
    save = {"model": [loader, 0], "tokens": [denoise, 0], "filename_prefix": "both"}
    edit["save"] = {"class_type": "MMaDAParallelSaveTokens", "inputs": save}
    return queue


def at_once(servers, prompt):
    queued = [(server, server.queue(copy.deepcopy(prompt))) for server in servers]
    return [server.finish(prompt_id, 600) for server, prompt_id in queued]


def test_edits_of_both_are_all_saved(servers, queue):
    assert [done.status for done in at_once(servers, queue["edit"])] == ["success"] * 2
    files = (servers[0].base / "output").glob("both_*.tokens.safetensors")
    first, second = (load_file(file)["image"].tolist() for file in files)
    assert first == second


def test_runs_of_one_name_have_folders_of_their_own(servers, queue):
    assert [done.status for done in at_once(servers, queue["SFT"])] == ["success"] * 2
    runs = (servers[0].base / "output" / "mmada_parallel" / "training").glob(
        "*/adapter.safetensors"
    )
    adapters = [load_file(file) for file in runs]
    assert len(adapters) == 2
    first, second = ({n: t.tolist() for n, t in adapter.items()} for adapter in adapters)
    assert first == second


def test_one_file_that_both_convert_to_is_whole(servers, queue):
    ends = at_once(servers, queue["convert"])
    assert "success" in [done.status for done in ends]
    for done in ends:
        for message in done.of("execution_error"):
            kind = message.data["exception_type"].rpartition(".")[2]
            assert kind in SENTENCES, done.error
    (file,) = (servers[0].base / "models" / "mmada_parallel").glob("*.safetensors")
    inspect_checkpoint(file)
    assert not [path for path in file.parent.iterdir() if path != file and path.is_file()]

"""Two processes (gloo, CPU) against one with the same global batch.

Adapters by summed gradients; all weights sharded (FSDP2), against one process that holds them all.
"""

import socket

import pytest
import torch
import torch.multiprocessing as mp
from mmada_parallel.mmp_core import InputError
from mmada_parallel.tests.mmp_core.tiny import write_checkpoint
from mmada_parallel.tests.training.ranks_worker import JOBS, PARARL, one_of_two, run_of, work
from mmada_parallel.training.loop.ranks import Ranks, launched_ranks

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), "A")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def together(checkpoint, folder):
    """What each of two processes found, by job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    workers = [
        context.Process(target=one_of_two, args=(rank, port, checkpoint, folder))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("method, policy", JOBS)
def test_two_processes_do_what_one_does(method, policy, together, checkpoint, folder, tmp_path):
    alone = work(checkpoint, method, policy, tmp_path)
    first, second = (found[f"{method} {policy}"] for found in together)
    advantages = first["advantages"] | second["advantages"]
    assert advantages.keys() == alone["advantages"].keys()
    for key, value in alone["advantages"].items():
        assert torch.equal(value, advantages[key]), key
    for name, value in alone["policy"].items():
        assert torch.equal(first["policy"][name], second["policy"][name]), name
        assert torch.allclose(first["policy"][name], value, atol=1e-5), name
    for line, other in zip(alone["lines"], second["lines"], strict=True):
        for name in line.keys() - {"seconds"}:
            assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), name
    state = torch.load(folder / f"{method} {policy}" / "run.pt", weights_only=True)
    assert state["step"] == 2
    for found in (first, second):
        assert_same(found["resumed"], state["policy"])
        assert_same(found["resumed optimizer"], state["optimizers"][0]["state"])
    if policy == "full":
        assert first["held"] + second["held"] == alone["held"]
        assert abs(first["held"] - second["held"]) < 0.02 * alone["held"]


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, dict):
            assert_same(found[name], value)
        else:
            assert torch.equal(found[name], value), name


def test_processes_had_unequal_work(together):
    """Else nothing would show that they wait for each other."""
    spread = [
        [
            sum(
                bool(v.any()) for k, v in found["pararl full"]["advantages"].items() if k[0] == step
            )
            for step in "01"
        ]
        for found in together
    ]
    assert spread[0] != spread[1]


def test_more_processes_than_groups_are_refused(checkpoint, tmp_path):
    class Many(Ranks):
        count = PARARL.groups + 1

    with pytest.raises(InputError, match="4 groups for 5 processes"):
        run_of(checkpoint, "pararl", "lora", tmp_path, Many())


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
        {"LOCAL_RANK": "first"},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"},
        {"WORLD_SIZE": "2", "RANK": "-1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "99999999"},
    ],
)
def test_variables_of_torchrun_that_are_wrong_are_one_sentence(variables, monkeypatch):
    from accelerate.state import AcceleratorState

    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "")  # what accelerate sets is undone with it
        monkeypatch.delenv(name)
    variables = {"TORCHELASTIC_RUN_ID": "1", "OMP_NUM_THREADS": "1", **variables}
    for name, value in ({"MASTER_PORT": "29500"} | variables).items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(InputError, match=r"do not find each other \(.*torchrun"):
            launched_ranks("cpu")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)

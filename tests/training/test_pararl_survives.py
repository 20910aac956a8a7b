"""What becomes of a run that is killed, interrupted, diverges, or has no room left."""

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import InputError, load_checkpoint
from mmada_parallel.tests.mmp_core.tiny import write_checkpoint
from mmada_parallel.tests.training.pararl_worker import SETTINGS
from mmada_parallel.tests.training.tiny_cases import (
    QUICK,
    brightness,
    cases,
    new_run,
    redness,
    state_of,
)
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.rewards.weighted import Weighted
from mmada_parallel.training.weights.policies import LoRA


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), "A")


@pytest.fixture
def start(checkpoint, tmp_path):
    """``start(folder, settings)``: a run on a model of its own."""

    def start(folder="run", settings=QUICK, **options):
        model = load_checkpoint(checkpoint, dtype=torch.float32)
        return new_run(model, tmp_path / folder, settings, **options)

    return start


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def left_in(folder):
    return set(os.listdir(folder)) - {"tensorboard", ".lock"}


def worker(checkpoint, folder):
    command = [sys.executable, "-m", "mmada_parallel.tests.training.pararl_worker"]
    return subprocess.Popen(
        [*command, str(checkpoint), str(folder)], stdout=subprocess.PIPE, text=True
    )


def test_killed_and_resumed_is_as_if_nothing_had_been(checkpoint, tmp_path):
    """SIGKILL at a random moment; then the same adapter and the same log, bit for bit."""
    moment = random.Random()
    whole, broken = (worker(checkpoint, tmp_path / name) for name in ("whole", "broken"))
    last = f"step {moment.randint(3, SETTINGS.steps - 2)}\n"  # step 2 is said before it is saved
    for line in broken.stdout:
        if line == last:
            break
    time.sleep(moment.random() * 0.2)
    broken.kill()
    broken.wait()
    again = worker(checkpoint, tmp_path / "broken")
    said = again.communicate()[0].splitlines()
    whole.communicate()
    assert (whole.returncode, again.returncode) == (0, 0)
    assert said[0].startswith("resumed") and int(said[0].split()[1]) >= 2
    assert said[-1].endswith(f" {SETTINGS.steps}")  # one too quick to be killed has nothing to do
    wanted, found = (
        torch.load(tmp_path / name / "run.pt", weights_only=True) for name in ("whole", "broken")
    )
    assert wanted["policy"].keys() == found["policy"].keys()
    for name, value in wanted["policy"].items():
        assert torch.equal(value, found["policy"][name]), name
    assert found["scale"] == wanted["scale"]
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")
    assert [line["step"] for line in log_of(tmp_path / "whole")] == list(range(1, 10))
    assert left_in(tmp_path / "broken") == {"log.jsonl", "run.pt"}


class InterruptError(Exception):
    """As a host raises to stop what it runs."""


@pytest.mark.parametrize("where", ["callback", "rollouts", "rewards", "update", "ctrl-c"])
def test_interrupted_run_is_saved_and_goes_on_the_same(where, start, tmp_path):
    settings = replace(QUICK, steps=5, inner_epochs=2)
    whole = start("whole", settings)
    whole.train()

    def callback(step, _):
        if where == "callback" and step == 3:
            raise InterruptError

    def progress(phase, done, total):
        assert 0 <= done <= total and total > 0
        if phase == where and broken.step == 3:
            raise InterruptError

    def reward(pairs):
        if where == "ctrl-c" and broken.step == 3:
            raise KeyboardInterrupt
        return brightness(pairs)

    reward.name = "brightness"
    broken = start("broken", settings, reward=reward)
    with pytest.raises((InterruptError, KeyboardInterrupt)):
        broken.train(callback, progress)
    resumed = start("broken", settings)
    assert resumed.resume() and resumed.step == 3
    resumed.train()
    wanted, found = state_of(whole), state_of(resumed)
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


def test_an_update_cut_in_two_is_not_saved(start):
    run = start(settings=replace(QUICK, checkpoint_every=2, inner_epochs=2))
    update = run.optimizers[0].step

    def cut():
        update()
        if run.step == 3:
            raise KeyboardInterrupt

    run.optimizers[0].step = cut
    with pytest.raises(KeyboardInterrupt):
        run.train()
    resumed = start(settings=replace(QUICK, checkpoint_every=2, inner_epochs=2))
    assert resumed.resume() and resumed.step == 2


@pytest.mark.parametrize("what", ["weights", "gradient"])
def test_divergence_ends_in_one_sentence_with_the_last_good_state_kept(what, start, tmp_path):
    run = start(settings=replace(QUICK, checkpoint_every=2))

    def poison(step, _):
        weight = next(iter(run.parameters.values()))
        if step == 3 and what == "weights":
            weight.data.fill_(float("nan"))
        elif step == 3:
            weight.register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(InputError, match="not finite.*after step 2 is kept") as told:
        run.train(poison)
    assert len(str(told.value).splitlines()) == 1
    state = torch.load(tmp_path / "run" / "run.pt", weights_only=True)
    assert state["step"] == 2
    assert all(value.isfinite().all() for value in state["policy"].values())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_is_told_with_what_to_do(error, start):
    def greedy(phase, done, total):
        if phase == "update" and run.step == 1:
            raise error

    run = start()
    with pytest.raises(InputError, match=r"step 2: use a smaller micro_batch.*after step 1 is"):
        run.train(progress=greedy)
    resumed = start()
    assert resumed.resume() and resumed.step == 1


def test_a_full_disk_is_told_and_the_last_state_stays_whole(start, tmp_path):
    resource = pytest.importorskip("resource")
    run = start(settings=replace(QUICK, checkpoint_every=1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step, _):
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))

    try:
        with pytest.raises(InputError, match="step 2 could not be written.*after step 1 is kept"):
            run.train(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(tmp_path / "run" / "run.pt", weights_only=True)["step"] == 1
    assert left_in(tmp_path / "run") == {"log.jsonl", "run.pt"}


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"seed": 1}, "seed"),
        ({"groups": 3}, "groups"),
        ({"group_size": 5}, "group_size"),
        ({"scored_steps": 1}, "scored_steps"),
        ({"reward_at": "output"}, "reward_at"),
        ({"inner_epochs": 2}, "inner_epochs"),
        ({"kl": 0.5}, "kl"),
        ({"clip": 0.1}, "clip"),
        ({"sampler": replace(QUICK.sampler, text_steps=2)}, "text_steps"),
    ],
)
def test_a_run_is_resumed_with_what_it_was_begun_with(changed, named, start):
    start().save()
    with pytest.raises(InputError, match=f"begun with {named} "):
        start(settings=replace(QUICK, **changed)).resume()


def test_settings_that_are_newer_than_the_run_are_no_difference(start, tmp_path):
    start().save()
    state = torch.load(tmp_path / "run" / "run.pt", weights_only=True)
    del state["settings"]["std_floor"], state["settings"]["sampler"]["speed"]
    torch.save(state, tmp_path / "run" / "run.pt")
    assert start().resume()


def test_what_does_not_change_the_meaning_may_be_another(start):
    start().save()
    free = replace(QUICK, steps=9, micro_batch=3, learning_rate=1e-4, gradient_checkpointing=True)
    assert start(settings=free).resume()


def test_another_reward_is_refused(start):
    start(reward=Weighted([(brightness, 1.0), (redness, 0.5)])).save()
    assert start(reward=Weighted([(brightness, 1.0), (redness, 0.5)])).resume()
    for other in (Weighted([(brightness, 1.0), (redness, 0.6)]), brightness):
        with pytest.raises(InputError, match="begun with reward brightness=1 . redness=0.5, not "):
            start(reward=other).resume()


def test_other_data_rank_or_kind_are_refused(start, tmp_path):
    first = start()
    first.save()
    with pytest.raises(InputError, match="other data"):
        start(own=cases(first.model, 4)).resume()
    with pytest.raises(InputError, match="other data"):
        start(own=cases(first.model, seed=1)).resume()
    other = ParaRLRun(
        first.model,
        first.cases,
        brightness,
        QUICK,
        tmp_path / "run",
        policy=LoRA(first.model.transformer, rank=3),
    )
    with pytest.raises(InputError, match="another rank"):
        other.resume()
    state = torch.load(tmp_path / "run" / "run.pt", weights_only=True)
    torch.save({**state, "kind": "sft"}, tmp_path / "run" / "run.pt")
    with pytest.raises(InputError, match="another kind"):
        start().resume()


def test_a_damaged_state_is_told(start, tmp_path):
    run = start()
    assert not run.resume()
    run.save()
    file = tmp_path / "run" / "run.pt"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match="damaged"):
        start().resume()

"""Killed with all options on, again and again, a run ends with the same files, bit for bit."""

import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
from mmada_parallel.tests.mmp_core.tiny import write_checkpoint
from mmada_parallel.tests.training.everything_worker import new_run, train, write_data
from mmada_parallel.tests.training.test_pararl_survives import log_of
from mmada_parallel.tests.training.test_watch import files_of


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("everything")
    return write_checkpoint(folder / "tiny", "A"), write_data(folder / "data")


def worker(kind, places, folder):
    command = [sys.executable, "-m", "mmada_parallel.tests.training.everything_worker", kind]
    command += [str(place) for place in (*places, folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def seconds_of(process):
    """From its first line on, to its end."""
    process.stdout.readline()
    began = time.monotonic()
    process.communicate()
    assert process.returncode == 0
    return time.monotonic() - began


def killed(process, after):
    """Whether it was killed, some seconds after its first line, before it was done."""
    process.stdout.readline()
    time.sleep(after)
    process.kill()
    process.communicate()
    return process.returncode < 0


@pytest.mark.parametrize("kind", ["sft", "votes"])
def test_what_is_on_disk_at_any_moment_is_gone_on_from(kind, places, tmp_path):
    """As if it were killed between two steps, which is quick to try."""
    (tmp_path / "whole").mkdir()
    moment = random.Random().randint(1, 5)

    def copied(step, _):
        if step == moment:
            shutil.copytree(tmp_path / "whole", tmp_path / "broken")

    train(new_run(kind, *places, tmp_path / "whole"), copied)
    resumed = new_run(kind, *places, tmp_path / "broken")
    resumed.resume()
    train(resumed, None)
    assert_alike(tmp_path / "whole", tmp_path / "broken", by_votes=kind == "votes")


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["sft", "votes"])
def test_killed_at_ten_random_moments_it_ends_with_the_same_files(kind, places, tmp_path):
    """A run that is done before it is killed so often is compared, and another begun."""
    moment, hits, runs = random.Random(), 0, 1
    whole = seconds_of(worker(kind, places, tmp_path / "whole"))
    while hits < 10:
        broken = tmp_path / f"broken {runs}"
        if killed(worker(kind, places, broken), moment.uniform(0, whole / 4)):
            hits += 1
        else:
            assert_alike(tmp_path / "whole", broken, by_votes=kind == "votes")
            runs += 1
    broken = tmp_path / f"broken {runs}"
    seconds_of(worker(kind, places, broken))
    assert_alike(tmp_path / "whole", broken, by_votes=kind == "votes")


def assert_alike(*folders, by_votes):
    states = [torch.load(folder / "run.pt", weights_only=True) for folder in folders]
    for part in ("policy", "average"):
        wanted, found = (state[part] for state in states)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in wanted.items()), part
    assert states[0]["measured"] == states[1]["measured"]
    assert states[0]["step"] == states[1]["step"] == 6
    assert files_of(folders[0]) == files_of(folders[1])
    votes = [
        {file.relative_to(folder): file.read_bytes() for file in folder.glob("votes/*/*")}
        for folder in folders
    ]
    assert votes[0] == votes[1] and bool(votes[0]) == by_votes
    assert log_of(folders[0]) == log_of(folders[1])

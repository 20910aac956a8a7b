"""The smallest folder of a run for each fault that a second search found."""

import argparse
import io
import json
import math
import shutil
import struct
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from mmada_parallel.cli.run_file import read_run_file
from mmada_parallel.cli.training_options import add_sft
from mmada_parallel.mmp_core.checkpoint.tokens import check_words
from mmada_parallel.mmp_core.errors import InputError
from mmada_parallel.training.loop.folder import RunFolder
from mmada_parallel.training.pararl.objective import RewardScale
from mmada_parallel.training.pararl.votes import VotingRound
from mmada_parallel.training.rewards.clip_files import read_towers
from mmada_parallel.training.weights.sharded import _check_moments
from mmada_parallel.views.strip import samples_strip
from safetensors import safe_open
from safetensors.torch import load, save_file

from .limits import judged
from .readers import RED
from .test_corpus import refused
from .training_readers import read_rollouts, read_state


def packed_small(file, size):
    """A state of a run whose tensor takes ``size`` bytes once it is unpacked."""
    buffer = io.BytesIO()
    torch.save({"step": 1, "x": torch.zeros(7, dtype=torch.uint8)}, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for entry in whole.infolist():
            content = whole.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = content.replace(b"K\x07", b"J" + struct.pack("<i", size))
            if entry.filename.endswith("data/0"):
                content = bytes(size)
            out.writestr(entry.filename, content)


def test_a_state_that_unpacks_to_more_than_memory(tmp_path):
    packed_small(tmp_path / "run.pt", 2**27)
    assert (tmp_path / "run.pt").stat().st_size < 2**20
    refused(lambda: RunFolder(tmp_path).read("cpu"), "its tensors are compressed")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"embed_dim": 1, "text_cfg": {}, "vision_cfg": {}}})
    )
    (tmp_path / "run.pt").rename(tmp_path / "open_clip_pytorch_model.bin")
    refused(lambda: read_towers(tmp_path, "cpu"))


def spoilt_moments(**changes):
    def spoil(values):
        for name, change in changes.items():
            values[name] = change(values[name]) if callable(change) else change

    return spoil


MOMENTS = {
    "a plain number": spoilt_moments(step=3.0),
    "whole numbers": spoilt_moments(step=torch.tensor(3)),
    "sparse": spoilt_moments(exp_avg=torch.Tensor.to_sparse),
    "one value for all": spoilt_moments(exp_avg=lambda each: torch.zeros(1).expand(each.shape)),
    "not a number": spoilt_moments(exp_avg=lambda each: each * float("nan")),
    "squares below 0": spoilt_moments(exp_avg_sq=lambda each: each - 5),
}


@pytest.mark.parametrize("spoil", MOMENTS.values(), ids=MOMENTS)
def test_moments_that_no_optimizer_saved(place, tmp_path, spoil):
    shutil.copytree(place.folder / "state", tmp_path / "run")
    state = torch.load(tmp_path / "run" / "run.pt", weights_only=True)
    spoil(state["optimizers"][0]["state"][0])
    torch.save(state, tmp_path / "run" / "run.pt")
    refused(partial(read_state, place, tmp_path / "run", None), "run.pt", seconds=10)


@pytest.mark.parametrize("part", ["policy", "average"])
def test_weights_of_a_run_that_are_not_numbers(place, tmp_path, part):
    shutil.copytree(place.folder / "state", tmp_path / "run")
    state = torch.load(tmp_path / "run" / "run.pt", weights_only=True)
    next(iter(state[part].values())).fill_(float("nan"))
    torch.save(state, tmp_path / "run" / "run.pt")
    refused(
        partial(read_state, place, tmp_path / "run", None),
        "is not the state of a run, or it is damaged",
        seconds=10,
    )


@pytest.mark.parametrize("calls", [10**400, -1, True, "7", None])
def test_a_count_of_rewards_that_is_none(place, tmp_path, calls):
    shutil.copytree(place.folder / "state", tmp_path / "run")
    state = torch.load(tmp_path / "run" / "run.pt", weights_only=True)
    torch.save(state | {"reward_calls": calls}, tmp_path / "run" / "run.pt")
    refused(partial(read_state, place, tmp_path / "run", None), "reward_calls", seconds=10)


PACKED = {
    "step": 3, "state1": torch.zeros(80, 64, dtype=torch.uint8), "qmap1": torch.zeros(256),
    "absmax1": torch.zeros(20), "state2": torch.zeros(80, 64, dtype=torch.uint8),
    "qmap2": torch.zeros(256), "absmax2": torch.zeros(20),
}  # fmt: skip


@pytest.mark.parametrize("change", [
    {"state1": torch.zeros(79, 64, dtype=torch.uint8)}, {"state2": torch.zeros(80, 64).half()},
    {"qmap1": torch.zeros(255)}, {"absmax2": torch.zeros(19)}, {"step": torch.tensor(3.0)},
    {"step": -1}, {"absmax1": torch.full((20,), float("nan"))}, {"qmap2": torch.zeros(16, 16)},
])  # fmt: skip
def test_moments_of_one_byte_that_bitsandbytes_did_not_save(change):
    shape = torch.Size((80, 64))
    small = {"step": 0, "state1": torch.zeros(shape), "state2": torch.zeros(shape)}
    wrapped = {"step": 3, "__wrapped__": {k: v for k, v in PACKED.items() if k != "step"}}
    for good in (PACKED, small, wrapped):
        _check_moments("AdamW8bit", good, shape)
    with pytest.raises(ValueError, match=next(iter(change))):
        _check_moments("AdamW8bit", PACKED | change, shape)


def becomes(token):
    """All that a step knows is one and the same token."""
    return lambda each: each.where(each < 0, token)


ROLLOUTS = {
    "0.index": (lambda each: each + 10**9, lambda each: each.float(), lambda each: each[:-1]),
    "0.finite": (lambda each: each.float(), lambda each: each[:1]),
    "0.text_revealed": (lambda each: ~each, lambda each: each[:1], lambda each: each & False),
    "0.image_revealed": (lambda each: ~each, lambda each: each.flatten()),
    "0.state.text": (
        lambda each: each * 0 - 7,
        lambda each: each * 0 + 10**9,
        lambda each: each * 0,
    ),
    "0.after.text": (becomes(0), lambda each: each * 0 - 1),
    "0.after.image": (lambda each: each * 0 - 7, lambda each: each[:, :1], becomes(0)),
}


@pytest.mark.parametrize("name", ROLLOUTS)
def test_rollouts_that_waited_for_other_votes(place, tmp_path, name):
    shutil.copytree(place.folder / "voted", tmp_path / "run")
    file = tmp_path / "run" / "votes" / "step-00000" / "rollouts.safetensors"
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    tensors, said = load(file.read_bytes()), "rollouts.safetensors cannot be read"
    read = partial(read_rollouts, place, tmp_path / "run", None)
    for change in ROLLOUTS[name]:
        spoilt = dict(tensors)
        spoilt[name] = change(spoilt[name]).contiguous()
        if name == "0.text_revealed":
            spoilt["0.image_revealed"] = tensors["0.image_revealed"] & False
        save_file(spoilt, file, about)
        refused(read, said, seconds=10)
    for total in ("[true]", '["3"]', "[-1]"):
        save_file(tensors, file, {"total_steps": total})
        refused(read, said, seconds=10)
    save_file(tensors, file, about)
    assert judged(read)[0] == "ok"


def test_rollouts_of_text_that_is_no_word(place):
    layout = place.model.layout
    for token in (layout.mask_id, layout.image_offset):
        refused(lambda token=token: check_words(place.model, torch.tensor([0, token])), "no word")


@pytest.mark.parametrize("number", ["1", 1.5, None, [1], True])
def test_votes_on_a_group_that_is_none(place, number):
    refused(lambda: VotingRound(place.folder / "voted", 0).vote(number, [1]), "There is no group")


@pytest.mark.parametrize("line", [
    {"step": True, "loss": 1.0}, {"step": -1, "loss": 1.0}, {"step": 10**30, "loss": 1.0},
    {"step": 1, "loss": "x"}, {"step": 1, "loss": [1]}, {"step": 1, "loss": 1e308},
    {"step": 1, "loss": None}, {"step": 1, "loss": True}, {"step": 1, "loss": 10**400},
])  # fmt: skip
def test_a_line_of_a_log_that_is_not_of_numbers(tmp_path, line):
    good = {"step": 1, "loss": float("nan")}
    (tmp_path / "log.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(line)}\n")
    assert [each["step"] for each in RunFolder(tmp_path).lines()] == [1]


@pytest.mark.parametrize("text", ["steps = 0x" + "f" * 9000, "a." * 30_000 + "a = 1"])
def test_run_files_that_take_for_ever(tmp_path, text):
    (tmp_path / "run.toml").write_text(f'method = "sft"\n{text}\n')
    method = argparse.ArgumentParser()
    add_sft(method)
    refused(lambda: read_run_file(tmp_path / "run.toml", {"sft": method}, []), "run.toml",
            seconds=2)  # fmt: skip


def test_a_run_file_of_other_bytes_is_said_once(tmp_path):
    (tmp_path / "run.toml").write_bytes(b'method = "s\xe9"')
    with pytest.raises(InputError) as error:
        read_run_file(tmp_path / "run.toml", {}, [])
    assert str(error.value).count("run.toml") == 1


def test_a_sample_of_an_endless_word_is_drawn_at_once(tmp_path):
    (tmp_path / "samples" / "step-00001").mkdir(parents=True)
    RED.save(tmp_path / "samples" / "step-00001" / "1.png")
    (tmp_path / "samples" / "step-00001" / "1.txt").write_text("a" * 900_000)
    assert judged(lambda: samples_strip(tmp_path), seconds=2)[0] == "ok"


def test_a_picture_to_vote_on_is_whole_or_absent(tmp_path):
    class Cut:
        def save(self, file, form):
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    waiting = VotingRound(tmp_path, 0)
    waiting.folder.mkdir(parents=True)
    with pytest.raises(OSError, match="No space left"):
        waiting._write_picture("1-1.png", Cut())
    assert not [*waiting.folder.iterdir()]


@pytest.mark.parametrize("spoilt", [{"mean": 1e308}, {"mean": -1e200}, {"squares": 1e305}])
def test_a_scale_of_rewards_that_cannot_be_squared(spoilt):
    with pytest.raises(ValueError, match="its scale of rewards is"):
        RewardScale.of({"count": 3, "mean": 0.5, "squares": 1.0, **spoilt})
    most = RewardScale.of({"count": 10**12, "mean": 1e100, "squares": 1e200})
    assert math.isfinite(most.including(torch.tensor([-3e38, 3e38])).std)

"""``train pararl`` and ``train sft --data``, on a model that has learnt nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmada_parallel.cli import train as command
from mmada_parallel.demo.render import render
from mmada_parallel.demo.world import task
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.mmp_core.checkpoint.adapters import read_adapter
from mmada_parallel.training.pararl.run import ParaRLRun
from PIL import Image
from safetensors import safe_open

FEW = (
    "--cases",
    4,
    "--steps",
    2,
    "--rank",
    2,
    "--device",
    "cpu",
    "--micro-batch",
    8,
    "--no-gradient-checkpointing",
)
QUICK = (
    "--groups",
    2,
    "--group-size",
    3,
    "--scored-steps",
    2,
    "--text-steps",
    3,
    "--image-steps",
    2,
)
CLIP = ("--reward", "clip:demo")
"""Tells apart what a model that has learnt nothing answers, as the checker does not."""


@pytest.fixture
def pararl(run, checkpoint, tmp_path):
    """``pararl(*options)`` on the untrained checkpoint, to tmp_path/toy.safetensors."""
    output = ("--output", tmp_path / "toy.safetensors")
    return lambda *more: run("train", "pararl", "--model", checkpoint, *output, *FEW, *QUICK, *more)


def test_a_refusal_leaves_no_folder_behind(run, tmp_path):
    out = tmp_path / "a" / "x.safetensors"
    code, _, said = run("train", "sft", "--data", tmp_path / "nowhere", "--output", out)
    assert code == 2 and "There is no dataset" in said and not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path):
    """A dataset of two pictures with everything, and one without its target."""
    place = tmp_path / "pictures"
    place.mkdir()
    for number in range(3):
        edit = task(number, kinds=("recolour",))
        render(edit.before).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(edit.instruction)
        (place / f"{number}.think.txt").write_text(edit.sentence)
        if number:
            render(edit.after).save(place / f"{number}.target.png")
    return place


def test_rewards_train_an_adapter_that_edit_takes(run, pararl, checkpoint, scene, tmp_path):
    file = tmp_path / "toy.safetensors"
    code, out, err = pararl(*CLIP)
    assert (code, out) == (0, f"{file}  (2 steps)\n")
    assert "4 cases of toy world" in err
    log = (tmp_path / "toy-run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2]
    both = json.loads(log[0])["reward_calls"]  # after the scored steps, and before them
    assert 2 * 3 * (2 + 1) <= both <= 2 * 3 * 2 * 2
    _, about = read_adapter(file)
    assert about["training"] == "pararl" and about["rank"] == "2" and about["dataset"] == "demo"
    assert json.loads(about["settings"])["group_size"] == 3
    lora = ("--model", checkpoint, "--lora", file, "--out", tmp_path / "edited.png")
    assert run("edit", scene, "make it red", *lora, "--text-steps", 1, "--image-steps", 1)[0] == 0


def test_a_folder_is_trained_on_with_clip(run, pararl, folder, tmp_path):
    code, _, err = pararl("--data", folder, "--reward", "clip:demo=0.5", "--cases", 2)
    assert code == 0 and "2 cases of pictures" in err
    line = (tmp_path / "toy-run" / "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(line)["reward_mean"] == pytest.approx(
        json.loads(line)["reward_clip"] / 2, rel=1e-4
    )


def test_offload_trains_the_same_adapter(pararl, tmp_path):
    file, states = tmp_path / "toy.safetensors", []
    for more in ((), ("--offload",)):
        assert pararl(*CLIP, *more, "--run-folder", tmp_path / f"run {len(more)}")[0] == 0
        states.append(read_adapter(file)[0])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    for refused in ("--full", "--lora"):
        values = (refused,) if refused == "--full" else (refused, file)
        code, _, err = pararl(*CLIP, "--offload", *values, "--run-folder", tmp_path / "other")
        assert code == 2 and "--offload" in err


def test_adapters_of_a_run_are_compared(pararl, run, checkpoint, scene, tmp_path):
    assert pararl(*CLIP, "--keep-every", 1)[0] == 0
    sheet, few = tmp_path / "sheet.png", ("--text-steps", 2, "--image-steps", 2)
    common = ("make the zebra red", "--model", checkpoint, "--out", sheet, "--seed", 3, *few)
    code, out, err = run("compare", tmp_path / "toy-run", *common, "--image", scene)
    assert code == 0 and "does not know: zebra" in err
    lines = [line.partition(":")[0] for line in out.splitlines()]
    assert lines[:3] == ["no adapter", "step 1", "step 2"] and lines[3].endswith("(seed 3)")
    with Image.open(sheet) as picture:
        assert picture.width > 2 * picture.height
    code, out, err = run("compare", tmp_path, *common)
    assert code == 2 and "holds no adapters of a run" in err


def test_votes_are_filled_in_and_the_run_goes_on(pararl, folder):
    votes_for = ("--reward", "votes", "--held-out-data", folder)
    code, out, err = pararl(*votes_for)
    assert code == 0 and "waits for your votes on 2 of 2 groups" in err
    sheet, votes = map(Path, out.splitlines())
    with Image.open(sheet) as picture:
        assert picture.width > picture.height
    for waits_again in (True, False):
        told = json.loads(votes.read_text())
        assert [len(group["answers"]) for group in told["groups"]] == [3, 3]
        for group in told["groups"]:
            group["winners"] = [2]
        votes.write_text(json.dumps(told))
        code, out, err = pararl(*votes_for, "--resume")
        assert code == 0 and ("waits for your votes" in err) == waits_again
        votes = Path(out.splitlines()[-1].partition("  (")[0])
    assert votes.name == "toy.safetensors" and "held-out loss" in err
    votes.unlink()
    assert pararl("--reward", "votes", "--reward", "checker")[0] == 2


def test_several_folders_with_repeats_and_words_of_ones_own(run, checkpoint, folder, tmp_path):
    data = ("--data", f"{folder}=3", "--data", "demo", "--cases", 2, "--trigger-word", "sks")
    file = tmp_path / "sft.safetensors"
    options = ("--model", checkpoint, *FEW[2:], *data, "--mirrored", "--outside-weight", 0.0)
    code, _, err = run("train", "sft", *options, "--output", file)
    assert code == 0 and "cases of pictures + toy world" in err, err
    assert read_adapter(file)[1]["dataset"] == "pictures + demo"
    text = (tmp_path / "sft-run" / "run.toml").read_text()
    assert f'data = ["{folder}=3", "demo=1"]' in text and 'trigger_word = "sks"' in text
    assert run("train", "file", tmp_path / "sft-run" / "run.toml", "--resume", "--steps", 3)[0] == 0
    more = ("--output", tmp_path / "x.safetensors", "--quiet")
    for bad in (("--data", f"{folder}=0"), ("--data", folder, "--template", "red")):
        code, out, err = run("train", "sft", "--model", checkpoint, *bad, *more)
        assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_sft_on_a_folder_names_what_it_skips(run, checkpoint, folder, tmp_path):
    common = ("--model", checkpoint, "--data", folder, *FEW, "--batch-size", 2)
    file = tmp_path / "sft.safetensors"
    code, out, err = run("train", "sft", *common, "--output", file)
    assert (code, out) == (0, f"{file}  (2 steps)\n")
    assert "skipped 0: it has no target picture" in err
    code, _, err = run(
        "train", "sft", *common, "--output", tmp_path / "b.safetensors", "--bad-items", "fail"
    )
    assert code == 2 and len([line for line in err.splitlines() if "target" in line]) == 1


def test_all_weights_become_a_checkpoint(run, checkpoint, tmp_path):
    file = tmp_path / "whole.safetensors"
    options = ("--model", checkpoint, "--data", "demo", *FEW, "--full", "--learning-rate", 0.01)
    assert run("train", "sft", *options, "--output", file)[0] == 0
    before, after = load_checkpoint(checkpoint), load_checkpoint(file)
    weights = before.transformer.state_dict()
    changed = [
        name
        for name, w in after.transformer.state_dict().items()
        if not torch.equal(w, weights[name])
    ]
    assert len(changed) == len(weights)
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["mmada_parallel"])
    assert about["provenance"]["training"] == "sft"
    again = ("--model", file, "--data", "demo", *FEW, "--full")
    code, _, err = run("train", "sft", *again, "--output", tmp_path / "c.safetensors")
    assert code == 2 and "folder it was made from" in err


@pytest.mark.parametrize(
    "option, named", [("--folder", "--folder"), ("--decay-steps", "decay_steps")]
)
def test_options_of_the_other_training_are_refused(run, checkpoint, option, named, tmp_path):
    common = ("--model", checkpoint, "--data", "demo", "--output", tmp_path / "a.safetensors")
    code, out, err = run("train", "sft", *common, "--quiet", option, 7)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and named in err


def test_training_goes_on_only_when_asked_to(pararl):
    assert pararl("--resume")[0] == 2
    assert pararl(*CLIP, "--steps", 1)[0] == 0
    code, _, err = pararl(*CLIP, "--quiet")
    assert code == 2 and "--resume" in err and len(err.splitlines()) == 1
    code, out, err = pararl(*CLIP, "--resume")
    assert code == 0 and out.endswith("(2 steps)\n") and "after step 1" in err
    code, _, err = pararl(*CLIP, "--resume", "--groups", 3, "--quiet")
    assert code == 2 and "begun with groups 2" in err and len(err.splitlines()) == 1


def test_ctrl_c_says_where_the_run_is(pararl, tmp_path, monkeypatch):
    def interrupt(run, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(ParaRLRun, "advance", interrupt)
    code, _, err = pararl()
    assert code == 130 and "run.pt" in err and "--resume" in err
    assert (tmp_path / "toy-run" / "run.pt").is_file()
    assert not (tmp_path / "toy.safetensors").exists()


def test_ctrl_c_leaves_the_adapter_as_far_as_it_is_trained(pararl, tmp_path, monkeypatch):
    advance = ParaRLRun.advance

    def interrupted(run, progress):
        if run.step:
            raise KeyboardInterrupt
        return advance(run, progress)

    monkeypatch.setattr(ParaRLRun, "advance", interrupted)
    file = tmp_path / "toy.safetensors"
    code, out, _ = pararl(*CLIP)
    assert (code, out) == (130, f"{file}  (1 steps)\n")
    assert read_adapter(file)[1]["steps"] == "1"


@pytest.mark.parametrize(
    "options, told",
    [
        (("--output", "toy.txt"), ".safetensors"),
        (("--data", "nowhere"), "--reward"),
        (("--data", "nowhere", "--reward", "clip:demo"), "nowhere"),
        (("--data", "nowhere", "--reward", "clip:demo", "--model", "also-nowhere"), "no dataset"),
        (("--data", "FOLDER", "--reward", "checker"), "not a task of the toy world"),
        (("--reward", "beauty"), "beauty"),
        (("--reward", "clip"), "clip"),
        (("--group-size", 1), "group_size"),
        (("--learning-rate", -1), "learning_rate"),
        (("--text-steps", 0), "text_steps"),
        (("--model", "nowhere"), "nowhere"),
        (("--reward-at", "end"), "reward-at"),
    ],
)
def test_bad_input_is_one_line(options, told, pararl, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [folder if option == "FOLDER" else option for option in options]
    code, out, err = pararl("--quiet", *options)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert told in err
    assert not (tmp_path / "toy.safetensors").exists()


def test_a_gpu_gets_as_large_a_micro_batch_as_it_has_room_for(
    run, checkpoint, tmp_path, monkeypatch
):
    few = [option for option in FEW if option not in ("--micro-batch", 8)]
    output = ("--model", checkpoint, "--output", tmp_path / "toy.safetensors")
    train = ("train", "pararl", *output, *few, *QUICK, *CLIP)
    monkeypatch.setattr(command, "free_bytes", lambda device: 1000)
    code, out, err = run(*train, "--quiet")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and "0.0 MB free" in err
    monkeypatch.setattr(command, "free_bytes", lambda device: 10**12)
    code, _, err = run(*train)
    assert code == 0 and "64 sequences at a time" in err
    _, about = read_adapter(tmp_path / "toy.safetensors")
    assert json.loads(about["settings"])["micro_batch"] == 64


@pytest.mark.parametrize(
    "option",
    [
        ("--output", "a.safetensors"),
        ("--rank", 4),
        ("--layers", "mlp"),
        ("--dtype", "float32"),
        ("--bad-items", "fail"),
        ("--cases", 4),
        ("--full",),
        ("--model", "toy.safetensors"),
    ],
)
def test_sft_from_nothing_takes_no_options_of_a_finetuning(option, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", "sft", "--steps", 1, *option)
    assert code == 2 and f"{option[0]} needs --data" in err
    assert not list(tmp_path.iterdir())


def test_sft_on_data_needs_an_output(run):
    code, _, err = run("train", "sft", "--data", "demo")
    assert code == 2 and "needs --output" in err


@pytest.mark.parametrize("full", [(), ("--full",)], ids=["adapter", "whole"])
def test_two_processes_train_together(full, checkpoint, tmp_path):
    pytest.importorskip("accelerate")
    file = tmp_path / "toy.safetensors"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "mmada_parallel.cli",
        "train",
        "pararl",
        "--model",
        checkpoint,
        "--output",
        file,
        *FEW,
        *QUICK,
        *CLIP,
        *full,
    ]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{file}  (2 steps)"]
    log = (tmp_path / "toy-run" / "log.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["tokens"] for line in log)
    if full:
        assert load_checkpoint(file)
    else:
        assert read_adapter(file)[1]["processes"] == "2"

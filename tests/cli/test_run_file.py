"""Run files: written beside a run, and read to start it again."""

import sys

import pytest
import torch
from mmada_parallel.demo.register import ToyWorld
from mmada_parallel.mmp_core.checkpoint.adapters import read_adapter
from mmada_parallel.tests.cli.test_finetune import CLIP, FEW, QUICK
from mmada_parallel.training.weights.adapter_files import save_adapter
from safetensors.torch import load_file


def tensors(file):
    return read_adapter(file)[0]


def same(file, other):
    one, two = tensors(file), tensors(other)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def begun(run, checkpoint, tmp_path):
    """The run file of an SFT run of the toy world with options of every kind."""
    output = tmp_path / 'über "a".safetensors'
    options = ("--model", checkpoint, "--data", "demo", *FEW, "--learning-rate", 1e-5)
    options += ("--layers", "attention", "--held-out", 0.5, "--keep-every", 1, "--guard", "none")
    code, _, err = run("train", "sft", *options, "--output", output)
    assert code == 0, err
    return tmp_path / 'über "a"-run' / "run.toml"


def test_a_run_file_starts_the_run_again(run, begun, tmp_path, monkeypatch):
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    code, _out, err = run("train", "file", begun, "--output", "b.safetensors", "--run-folder", "b")
    assert code == 0, err
    assert same(other / "b.safetensors", tmp_path / 'über "a".safetensors')
    first, second = (file.read_text().splitlines() for file in (begun, other / "b" / "run.toml"))
    changed = {line.partition(" ")[0] for line in set(first) ^ set(second)}
    assert changed == {"output", "run_folder"}


def test_it_goes_on_with_what_is_given_after_it(run, begun, tmp_path):
    assert run("train", "file", begun)[0] == 2
    code, _, err = run("train", "file", begun, "--resume", "--rslora")
    assert code == 2 and "another scale (rslora)" in err
    code, out, err = run("train", "file", begun, "--resume", "--steps=3")
    assert code == 0 and "(3 steps)" in out and "resuming after step 2" in err
    assert max(f.name for f in (begun.parent / "adapters").iterdir()).startswith("step-00003")


def test_lists_and_switches_survive(run, checkpoint, tmp_path):
    out = ("--output", tmp_path / "a.safetensors", "--model", checkpoint)
    rewards = ("--reward", "clip:demo=0.5", "--reward", "checker=2")
    assert run("train", "pararl", *out, *FEW, *QUICK, *rewards)[0] == 0
    file = tmp_path / "a-run" / "run.toml"
    text = file.read_text()
    assert 'reward = ["clip:demo=0.5", "checker=2.0"]' in text and "text_steps = 3" in text
    again = ("--output", tmp_path / "b.safetensors")
    assert run("train", "file", file, *again)[0] == 0
    assert same(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    code, _, _err = run("train", "file", file, *again, *CLIP, "--run-folder", tmp_path / "c")
    assert code == 0 and 'reward = ["clip:demo=1.0"]' in (tmp_path / "c" / "run.toml").read_text()


def test_the_default_reward_is_written_and_starts_again(run, checkpoint, tmp_path, monkeypatch):
    """With one that tells apart what a model that has learnt nothing answers."""
    monkeypatch.setattr(ToyWorld, "reward", "clip:demo")
    out = ("--output", tmp_path / "a.safetensors", "--model", checkpoint)
    code, _, err = run("train", "pararl", *out, "--data", "demo=2", *FEW, *QUICK)
    assert code == 0, err
    file = tmp_path / "a-run" / "run.toml"
    text = file.read_text()
    assert 'reward = ["clip:demo=1.0"]' in text and 'data = ["demo=2"]' in text
    without = tmp_path / "without.toml"  # as earlier versions wrote it
    without.write_text("".join(line for line in text.splitlines(True) if "reward =" not in line))
    for each, name in ((file, "b"), (without, "c")):
        places = ("--output", tmp_path / f"{name}.safetensors", "--run-folder", tmp_path / name)
        code, _, err = run("train", "file", each, *places)
        assert code == 0, err
    code, _, err = run("train", "file", file, "--resume", "--steps", 3)
    assert code == 0, err


def test_an_adapter_is_trained_further(run, checkpoint, tmp_path):
    common = ("--model", checkpoint, "--data", "demo", *FEW)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert run("train", "sft", *common, "--layers", "mlp", "--output", first)[0] == 0
    further = ("--existing-lora", first, "--learning-rate", 1e-7, "--output", second)
    assert run("train", "sft", *common, *further)[0] == 0
    before, after = tensors(first), tensors(second)
    assert before.keys() == after.keys() and not same(first, second)
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-5
    code, _, err = run("train", "sft", *common, *further, "--full", "--run-folder", tmp_path / "x")
    assert code == 2 and "do not give --full" in err
    state, about = read_adapter(first)
    for changed, told in (("variant", "was trained on variant D"), ("base_fingerprint", "poor")):
        save_adapter(first, state, about | {changed: "D"})
        code, _, err = run("train", "sft", *common, *further, "--run-folder", tmp_path / changed)
        assert code == (2 if changed == "variant" else 0) and told in err


@pytest.mark.parametrize(
    "text, told",
    [
        ('method = "sft"\nstepz = 3', "has stepz, which is not an option of train sft"),
        ('method = "sft"\nstep = 3', "has step, which is not an option"),
        ('method = "dance"', "has the method 'dance': expected sft or pararl"),
        ("steps = 3", "has the method None"),
        ("steps 3", "is not a run file"),
        ('method = "sft"\nsteps = 2020-01-01', "expected text, a number, true or false"),
        ('method = "sft"\nsteps = "many"', "invalid int value"),
        ('method = "sft"\nlearning_rate = -1.0\ndata = "demo"\noutput = "a.safetensors"', "rate"),
        (None, "cannot be read"),
    ],
)
def test_bad_files_are_one_line(text, told, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.toml"
    if text is not None:
        file.write_text(text)
    code, out, err = run("train", "file", file)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and told in err


def test_without_a_reader_that_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    monkeypatch.setitem(sys.modules, "tomli", None)
    file = tmp_path / "run.toml"
    file.write_text('method = "sft"')
    code, _, err = run("train", "file", file)
    assert code == 2 and "pip install tomli" in err


def test_from_nothing_is_started_again_too(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ("--steps", 1, "--batch-size", 2, "--device", "cpu")
    assert run("train", "sft", *few, "--folder", "a")[0] == 0
    assert run("train", "file", "a/run.toml", "--folder", "b")[0] == 0
    one, two = (load_file(tmp_path / n / "checkpoint" / "model.safetensors") for n in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)

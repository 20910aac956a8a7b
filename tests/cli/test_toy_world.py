"""``mmada-parallel evaluate`` and ``train sft``, on models too small to learn anything."""

import json
import shutil

import pytest
import torch
from mmada_parallel.demo import train as demo_train
from mmada_parallel.mmp_core.checkpoint import load
from mmada_parallel.training.sft.run import SFTRun

FAST = ("--text-steps", 1, "--image-steps", 1, "--joint-guidance", 0)


@pytest.fixture
def sft(run, checkpoint, tmp_path, monkeypatch):
    """``sft(*arguments)``: trains a smaller transformer than the demo's in tmp_path/run."""
    (checkpoint / "clip").mkdir(exist_ok=True)
    small = {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 32}
    monkeypatch.setattr(demo_train, "SIZES", small)
    monkeypatch.setattr(load, "DEMO", checkpoint)
    common = ("--folder", tmp_path / "run", "--batch-size", 2, "--device", "cpu")
    return lambda *arguments: run("train", "sft", *common, *arguments)


def test_evaluation_as_json_has_every_measure(run, checkpoint):
    code, out, err = run("evaluate", "--model", checkpoint, "--cases", 4, "--json", *FAST)
    measured = json.loads(out)
    assert code == 0 and "4/4" in err
    assert measured["cases"] == 4
    assert {"picture", "sentence", "agree", "kept", "tokenizer_parse"} <= measured.keys()
    assert 0 <= measured["copying"]["kept"] <= 1


def test_evaluation_as_table_has_a_row_for_copying(run, checkpoint):
    code, out, err = run("evaluate", "--model", checkpoint, "--cases", 4, "--quiet", *FAST)
    assert (code, err) == (0, "")
    rows = out.splitlines()
    assert rows[0].split() == ["cases", "picture", "sentence", "agree", "kept", "words"]
    (copying,) = [row for row in rows if row.startswith("copying")]
    assert len({len(row) for row in rows[:4]}) == 1 and copying.split()[-2:] == ["1.000", "0.000"]


def test_evaluation_repeats_with_other_seeds_and_scores_by_clip(run, checkpoint):
    pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    wanted = ("--cases", 3, "--repeats", 2, "--clip", "demo", "--quiet")
    code, out, _ = run("evaluate", "--model", checkpoint, "--json", *wanted, *FAST)
    measured = json.loads(out)
    assert code == 0 and len(measured["by_repeat"]) == 2
    mean = sum(repeat["clip"] for repeat in measured["by_repeat"]) / 2
    assert measured["clip"] == pytest.approx(mean) and -1 <= mean <= 1
    code, out, _ = run("evaluate", "--model", checkpoint, *wanted, *FAST)
    assert code == 0 and "repeat 2" in out and out.splitlines()[0].split()[-1] == "clip"


@pytest.mark.parametrize("option", [("--cases", 0), ("--batch", "some"), ("--model", "nowhere")])
def test_evaluation_refuses_bad_input_in_one_line(run, checkpoint, option):
    code, out, err = run("evaluate", "--model", checkpoint, "--quiet", *option)
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_what_was_trained_can_be_evaluated(run, sft, tmp_path):
    code, out, _ = sft("--steps", 2)
    assert code == 0
    assert out.splitlines()[-1] == f"{tmp_path / 'run' / 'checkpoint'}  (2 steps)"
    trained = ("--model", tmp_path / "run" / "checkpoint")
    assert run("evaluate", *trained, "--cases", 2, *FAST)[0] == 0


def test_training_goes_on_only_when_asked_to(sft):
    assert sft("--resume")[0] == 2
    assert sft("--steps", 1)[0] == 0
    code, _, err = sft("--steps", 2, "--quiet")
    assert code == 2 and "--resume" in err and len(err.splitlines()) == 1
    code, out, _ = sft("--steps", 2, "--resume")
    assert code == 0 and out.splitlines()[-1].endswith("(2 steps)")


def test_options_of_every_run_are_honoured(sft, tmp_path):
    options = {"warmup_steps": 3, "micro_batch": 1, "schedule": "constant", "drop_both": 0.5}
    given = [word for name, value in options.items() for word in (_option(name), value)]
    assert sft("--steps", 1, *given, "--gradient-checkpointing")[0] == 0
    settings = torch.load(tmp_path / "run" / "run.pt", weights_only=True)["settings"]
    assert {name: settings[name] for name in options} == options
    assert settings["gradient_checkpointing"] and settings["decay_steps"] == 0


def _option(name):
    return "--" + name.replace("_", "-")


def test_ctrl_c_keeps_the_run(sft, tmp_path, monkeypatch):
    def interrupt(run, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(SFTRun, "advance", interrupt)
    assert sft("--steps", 2)[0] == 130
    monkeypatch.undo()
    assert (tmp_path / "run" / "run.pt").is_file()


def test_without_the_demo_nothing_is_trained(sft, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "DEMO", tmp_path / "gone")
    code, _, err = sft("--steps", 1)
    assert code == 2 and "gone" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("world", ["atlantis", ["demo"], 7])
def test_a_world_that_is_none_is_refused(run, checkpoint, tmp_path, world):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"world": world}))
    code, _, err = run("evaluate", "--model", folder, "--cases", 4, "--quiet", *FAST)
    assert code == 2 and "config.json" in err and "world" in err and "expected" in err

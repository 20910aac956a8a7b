"""``mmada-parallel convert``: what it writes, prints and refuses."""

import json

import pytest
import torch
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.mmp_core.checkpoint import convert as core
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

FAST = ("--text-steps", 2, "--image-steps", 2, "--size", "64x64", "--seed", 1, "--quiet")


@pytest.mark.parametrize("kind", ["fp8", "int8", "none"])
def test_the_file_draws_as_a_model(run, checkpoint, tmp_path, kind):
    packed = tmp_path / "tiny.safetensors"
    code, out, err = run("convert", checkpoint, packed, "--quantize", kind)
    assert code == 0 and "reading" in err
    assert out == f"{packed}  ({packed.stat().st_size / 1e6:.1f} MB)\n"
    with safe_open(packed, framework="pt") as file:
        assert json.loads(file.metadata()["mmada_parallel"])["quantization"] == kind
    where = ("--model", packed, "--out", tmp_path / "out.png")
    assert run("generate", "draw a red circle", *where, *FAST)[0] == 0
    assert Image.open(tmp_path / "out.png").size == (64, 64)


def test_progress_is_shown_up_to_the_end(run, checkpoint, tmp_path, monkeypatch):
    from mmada_parallel.cli import convert as command

    bars = []

    class Bar(command.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append(self)

    monkeypatch.setattr(command, "tqdm", Bar)
    assert run("convert", checkpoint, tmp_path / "a.safetensors")[0] == 0
    (bar,) = bars
    assert bar.n == bar.total > 1e6


def test_nothing_but_the_file_is_told_when_quiet(run, checkpoint, tmp_path):
    code, out, err = run("convert", checkpoint, tmp_path / "a.safetensors", "--quiet")
    assert (code, err, len(out.splitlines())) == (0, "", 1)


def test_the_demo_has_a_name(run, tmp_path):
    packed = tmp_path / "demo.safetensors"
    assert run("convert", "demo", packed, "--quantize", "fp8", "--quiet")[0] == 0
    assert packed.stat().st_size < 12.1e6


@pytest.mark.parametrize(
    "arguments",
    [
        ("nowhere", "out.safetensors"),
        ("demo", "out.pt"),
        ("demo", "notes.txt/out.safetensors"),
        ("demo", "out.safetensors", "--quantize", "int4"),
        ("demo", "out.safetensors", "--image-tokenizer", "nowhere"),
        ("notes.txt", "out.safetensors"),
        ("demo",),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no checkpoint")
    code, out, err = run("convert", *arguments, "--quiet")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("mmada-parallel")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_ctrl_c_stops_with_130_and_leaves_nothing(run, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(core, "_write", interrupt)
    code, out, err = run("convert", "demo", tmp_path / "out.safetensors", "--quiet")
    assert (code, out, err) == (130, "", "\nmmada-parallel: stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_merged(run, tmp_path):
    adapter, merged = tmp_path / "a.safetensors", tmp_path / "merged.safetensors"
    layer = "model.transformer.blocks.0.q_proj"
    width = load_checkpoint("demo").transformer.config.d_model
    parts = {"A": torch.ones(1, width), "B": torch.ones(width, 1)}
    save_file({f"{layer}.lora_{part}.weight": t for part, t in parts.items()}, adapter)
    assert run("convert", "demo", merged, "--lora", f"{adapter}:0.5", "--quiet")[0] == 0
    with safe_open(merged, framework="pt") as file:
        about = json.loads(file.metadata()["mmada_parallel"])
    (listed,) = about["provenance"]["adapters"]
    assert (listed["name"], listed["strength"]) == ("a.safetensors", 0.5)
    code, out, err = run("convert", "demo", merged, "--lora", tmp_path / "none.safetensors")
    assert (code, out) == (2, "") and "No adapter at" in err

"""Run folders that landed versions wrote are resumed to the same adapter.

Which versions: tests/mmp_core/old_files/README.md.
"""

import shutil
from pathlib import Path

import pytest
import torch
from mmada_parallel.cli import main
from mmada_parallel.tests.mmp_core import tiny
from PIL import Image
from safetensors.torch import load_file

RUNS = Path(__file__).parents[1] / "mmp_core" / "old_files" / "runs"


DEFAULTS = {
    "reward": "clip:demo", "reward-at": "trajectory", "groups": 2, "group-size": 2, "kl": 1e-4,
    "scored-steps": 3, "text-steps": 32, "image-steps": 16, "text-temperature": 1.0,
    "image-temperature": 1.0, "joint-guidance": 0.0,
}  # fmt: skip
"""What ParaRL's options were then, whatever they are now."""
OPTIONS = {"sft": {"batch-size": 2}, "pararl": DEFAULTS, "dpo": {"masks": 2, "batch-size": 4}}


def resumed(name, folder, method="sft"):
    """The exit code of two more steps of an old run."""
    data = folder / "data"
    data.mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(data / f"{number}.png")
        Image.new("RGB", (64, 64), "green").save(data / f"{number}.target.png")
        (data / f"{number}.txt").write_text("make it red")
        (data / f"{number}.think.txt").write_text("red")
    shutil.copytree(RUNS / name, folder / "run")
    options = {"model": tiny.write_checkpoint(folder / "A", "A"), "data": data, "rank": 1}
    if method == "dpo":
        options["data"] = RUNS / name  # its picks
    options |= {**OPTIONS[method], "learning-rate": 5e-5, "steps": 4}
    options |= {"run-folder": folder / "run", "output": folder / "a.safetensors"}
    line = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return main(["train", method, "--resume", "--quiet", *line])


@pytest.mark.parametrize("name", ["second", "third"])
def test_an_old_run_ends_as_it_did_then(name, tmp_path):
    assert resumed(name, tmp_path) == 0
    ended, then = load_file(tmp_path / "a.safetensors"), load_file(RUNS / "ended.safetensors")
    torch.testing.assert_close(ended, then, rtol=0, atol=1e-7)  # of steps of 3e-5


@pytest.mark.parametrize("name", ["second-pararl", "third-pararl", "fourth-pararl", "dpo"])
def test_an_old_run_of_another_method_ends_as_it_did_then(name, tmp_path):
    method = name.rpartition("-")[2]
    if method == "pararl":
        pytest.importorskip("open_clip")
    assert resumed(name, tmp_path, method) == 0
    ended = load_file(tmp_path / "a.safetensors")
    then = load_file(RUNS / f"ended-{method}.safetensors")
    torch.testing.assert_close(ended, then, rtol=0, atol=1e-7)  # of steps of 5e-5


@pytest.mark.parametrize("name, method", [("first", "sft"), ("first-pararl", "pararl")])
def test_a_run_of_the_first_version_is_refused_in_one_sentence(name, method, tmp_path, capsys):
    assert resumed(name, tmp_path, method) == 2
    assert "was begun by an earlier version" in capsys.readouterr().err

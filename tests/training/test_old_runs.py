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


def resumed(name, folder):
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
    options |= {"batch-size": 2, "steps": 4, "run-folder": folder / "run"}
    options["output"] = folder / "a.safetensors"
    line = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return main(
        ["train", "sft", "--resume", "--quiet", *line, "--output", str(folder / "a.safetensors")]
    )


@pytest.mark.parametrize("name", ["second", "third"])
def test_an_old_run_ends_as_it_did_then(name, tmp_path):
    assert resumed(name, tmp_path) == 0
    ended, then = load_file(tmp_path / "a.safetensors"), load_file(RUNS / "ended.safetensors")
    torch.testing.assert_close(ended, then, rtol=0, atol=1e-7)  # of steps of 3e-5


def test_a_run_of_the_first_version_is_refused_in_one_sentence(tmp_path, capsys):
    assert resumed("first", tmp_path) == 2
    assert "was begun by an earlier version" in capsys.readouterr().err

"""``mmada-parallel`` alone, and ``check`` without a path."""

import json
import shutil

import pytest
import torch
from mmada_parallel.cli import surroundings
from mmada_parallel.mmp_core.variants.strangers import NOTE

KEYS = {"versions", "device", "kernels", "free_memory", "folder", "models"}


def test_alone_it_says_what_it_can_do(run):
    code, out, err = run()
    assert code == 0 and err == ""
    for command in ("edit", "generate", "train", "evaluate", "convert", "download", "check"):
        assert f"    {command} " in out
    assert "exit codes" in out and "check  " in out


@pytest.fixture
def models(checkpoint, tmp_path, monkeypatch):
    """A ComfyUI with one checkpoint that loads and two that do not."""
    folder = tmp_path / "ComfyUI" / "models" / "mmada_parallel"
    shutil.copytree(checkpoint, folder / "tiny")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{}")
    shutil.copytree(checkpoint, folder / "other")
    (folder / "other" / NOTE).write_text('{"family": "Z"}')
    (folder.parents[1] / "comfyui_version.py").write_text('__version__ = "0.99.1"\n')
    monkeypatch.setattr(surroundings, "models_folder", lambda: folder)
    return folder


def test_without_a_path_check_says_what_is_here(run, models):
    code, out, _ = run("check")
    assert code == 0
    for line in ("versions: Python 3.", f"torch {torch.__version__}", "ComfyUI 0.99.1", "device: "):
        assert line in out
    assert f"models folder: {models}" in out
    lines = {line.split(":")[0].strip(): line for line in out.split("models:\n")[1].splitlines()}
    assert list(lines) == ["demo", "broken", "other", "tiny"]
    assert "MMaDA-Parallel-A" in lines["tiny"] and "cannot be loaded" in lines["broken"]
    assert "cannot be loaded" in lines["other"]


def test_the_same_as_one_object(run, models):
    code, out, _ = run("check", "--json")
    found = json.loads(out)
    assert code == 0 and found.keys() == KEYS
    assert found["versions"]["torch"] == torch.__version__
    assert found["models"].keys() == {"demo", "broken", "other", "tiny"}
    assert isinstance(found["kernels"], bool)

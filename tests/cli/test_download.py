"""``mmada-parallel download``: where it goes, and what it says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mmada_parallel.cli import download as command
from mmada_parallel.tests.fake_hub import COMMIT, serving
from mmada_parallel.tests.mmp_core import tiny

PACK = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tiny.write_checkpoint(
        tmp_path_factory.mktemp("hub") / "MMaDA-Parallel-A", "A", shards=2
    )
    with serving({"tyfeld/MMaDA-Parallel-A": folder}) as hub:
        yield hub


@pytest.fixture(autouse=True)
def endpoint(hub, monkeypatch):
    """As ``HF_ENDPOINT`` sets it when Python starts."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_folders_that_may_not_be_looked_into_are_left_out(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    def refused(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.Path, "home", no_home)
    monkeypatch.setattr(command.Path, "is_dir", refused)
    assert command.models_folder() == tmp_path


def test_the_licence_is_said_before_and_the_path_after(run, tmp_path):
    code, out, err = run("download", "a", "--quantize", "fp8", "--into", tmp_path)
    assert code == 0
    assert out == f"{tmp_path / 'MMaDA-Parallel-A-fp8.safetensors'}\n"
    licence = f"tyfeld/MMaDA-Parallel-A at commit {COMMIT[:10]}, licence: mit"
    assert err.index(f"downloading into {tmp_path}") < err.index(licence)
    assert "licence: mit (tyfeld/MMaDA-Parallel-A)" in run("check", out.strip())[1]


def test_it_goes_where_a_comfyui_keeps_checkpoints(run, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PACK", tmp_path / "elsewhere" / "pack")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    inside = tmp_path / "ComfyUI" / "custom_nodes"
    inside.mkdir(parents=True)
    (tmp_path / "ComfyUI" / "models").mkdir()
    expected = tmp_path / "ComfyUI" / "models" / "mmada_parallel"
    for folder in (inside, tmp_path):  # of the portable build
        monkeypatch.chdir(folder)
        assert command.models_folder() == expected
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(command, "PACK", inside / "mmada-parallel")
    assert command.models_folder() == expected
    monkeypatch.setattr(command, "PACK", tmp_path / "elsewhere" / "pack")
    shutil.rmtree(tmp_path / "ComfyUI")
    assert command.models_folder() == tmp_path / "home"


@pytest.mark.parametrize("arguments", [("B",), ("M",), (), ("A", "--quantize", "none")])
def test_bad_input_is_refused_in_one_line(run, tmp_path, arguments):
    code, out, err = run("download", *arguments, "--into", tmp_path, "--quiet")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="links")
@pytest.mark.parametrize(
    "below, module", [("custom_nodes", "my-pack"), ("", "custom_nodes.my-pack")]
)
def test_the_pack_needs_no_install(tmp_path, below, module):
    """From ``custom_nodes``; and as in the portable build, whose Python has nothing but the folder
    of ComfyUI on its path."""
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "my-pack").symlink_to(PACK, target_is_directory=True)
    apart = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-s", "-m", f"{module}.cli", "convert", "--help"],
        cwd=tmp_path / below,
        env=apart,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--quantize" in done.stdout

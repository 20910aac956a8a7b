"""A wheel that is built and unpacked has all that it needs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".*", "build", "dist", "output", "tests", "benchmarks", "*.egg-info", "__pycache__"
)


def python(*arguments, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, whose demo checkpoint is one small file."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    assert setuptools
    source = tmp_path_factory.mktemp("source") / "any-name"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    checkpoint = source / "demo" / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    (checkpoint / "vqvae").mkdir(parents=True)
    (checkpoint / "vqvae" / "config.json").write_text("{}")
    options = ("--no-deps", "--no-build-isolation", "--quiet", "-w", source.parent)
    built = python("-m", "pip", "wheel", source, *options)
    assert built.returncode == 0, built.stderr
    return next(source.parent.glob("*.whl"))


def test_the_wheel_brings_pages_workflows_and_the_demo(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("web", "workflows"):
        files = [file for file in (ROOT / folder).rglob("*") if file.is_file()]
        assert files
        assert {f"mmada_parallel/{file.relative_to(ROOT).as_posix()}" for file in files} <= names
    assert "mmada_parallel/demo/checkpoint/vqvae/config.json" in names
    assert not [name for name in names if name.startswith(("mmada_parallel/tests", "tests"))]


def test_the_wheel_works_without_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    alone = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = (
        "import mmada_parallel.mmp_core as core, mmada_parallel.training.sft.run; "
        "from mmada_parallel.cli import main; print(core.__file__); main(['--help'])"
    )
    done = python("-c", code, env=alone, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(str(tmp_path))

"""What pyproject.toml promises to pip and to the Comfy registry."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from mmada_parallel.tests.packaging.test_rooms import BELOW, COMFYUI, imports

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
WITH_COMFYUI = {"torch", "transformers", "safetensors", "numpy", "pillow", "regex", "tqdm"}
"""regex comes with transformers."""
WITH_DEPENDENCIES = {
    *("filelock", "huggingface_hub", "pyarrow", "timm", "tokenizers", "triton", "typing_extensions")
}
"""Come with transformers, torch, open_clip_torch or datasets; triton where there is a GPU,
and is not needed."""
NOT_SHIPPED = {"benchmarks", "scripts", "tests"}


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def files():
    """Files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_package_folder_is_listed(pyproject, files):
    folders = {
        file.parent.relative_to(ROOT)
        for file in files
        if file.suffix == ".py" and file.relative_to(ROOT).parts[0] not in NOT_SHIPPED
    }
    assert set(pyproject["tool"]["setuptools"]["packages"]) == {
        ".".join(("mmada_parallel", *folder.parts)) for folder in folders
    }
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_inference_needs_only_what_comfyui_installs(pyproject):
    names = {re.match(r"[\w-]+", line)[0] for line in pyproject["project"]["dependencies"]}
    assert names <= WITH_COMFYUI
    assert not (ROOT / "requirements.txt").exists()


def test_the_command_exists(pyproject):
    module, function = pyproject["project"]["scripts"]["mmada-parallel"].split(":")
    assert callable(getattr(import_module(module), function))


def test_the_registry_finds_its_fields(pyproject):
    project, comfy = pyproject["project"], pyproject["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["urls"]["Repository"].startswith("https://github.com/")
    assert project["license"] == {"text": "Apache-2.0"}
    assert comfy["PublisherId"] and comfy["DisplayName"] == "MMaDA-Parallel"
    assert comfy["requires-comfyui"] == ">=0.16.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_what_the_registry_leaves_out_is_named_from_the_root():
    """Without the leading slash, docs/ would drop web/docs/, too."""
    lines = (ROOT / ".comfyignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert {"/tests/", "/scripts/", "/.ci/"} <= set(patterns)
    assert all(pattern.startswith("/") for pattern in patterns)


def test_what_is_imported_is_declared(pyproject):
    """By every room that is shipped, in its dependencies or in an extra for users."""
    extras = pyproject["project"]["optional-dependencies"]
    lines = [*pyproject["project"]["dependencies"]]
    lines += [line for extra in ("train", "distributed", "datasets") for line in extras[extra]]
    declared = {re.match(r"[\w-]+", line)[0] for line in lines}
    names = {"PIL": "pillow", "open_clip": "open_clip_torch"}
    imported = {name.partition(".")[0] for room in BELOW for _, name in imports(room)}
    others = imported - set(sys.stdlib_module_names) - set(BELOW) - COMFYUI
    others -= {
        "aiohttp",
        "comfy_api",
        "comfy_kitchen",
        "comfyui_version",
    }  # ComfyUI and what it serves its page by
    assert {"torch", "PIL"} <= others
    assert {names.get(name, name) for name in others} - declared - WITH_DEPENDENCIES == set()

"""The scripts that set up a fresh machine, as far as they can be run without one."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmada_parallel.demo.picture_book.edits import EDITS

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def comfyui(monkeypatch):
    """``scripts/comfyui.py``."""
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("comfyui")
    yield module
    for name in ("comfyui", "environment"):
        del sys.modules[name]


@pytest.fixture
def make_comfyui(tmp_path):
    """``make_comfyui(name, version)``: a folder that looks like a ComfyUI."""

    def make(name, version):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "main.py").touch()
        (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
        return folder

    return make


def in_scripts(code):
    """What ``code`` prints in a fresh Python without site packages, as JSON."""
    command = [sys.executable, "-S", "-c", f"import json; {code}"]
    done = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_variable_decides_which_comfyui(comfyui, make_comfyui, monkeypatch):
    here = make_comfyui("here", "0.33.0")
    monkeypatch.setenv("COMFYUI_PATH", str(here))
    assert comfyui.find() == here
    monkeypatch.setenv("COMFYUI_PATH", str(here / "gone"))
    assert comfyui.find() is None


def test_the_usual_place_is_found_and_one_too_old_is_not(comfyui, make_comfyui, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    old = make_comfyui("old/ComfyUI", "0.15.9")
    monkeypatch.setattr(comfyui, "_places", lambda: [old])
    assert comfyui.find() is None
    usual = make_comfyui("home/comfy/ComfyUI", "0.16.0")
    monkeypatch.setattr(comfyui, "_places", lambda: [old, usual])
    assert comfyui.find() == usual


def test_the_comfyui_around_the_pack_comes_first(comfyui, make_comfyui, monkeypatch):
    around = make_comfyui("around", "0.33.0")
    script = around / "custom_nodes" / "pack" / "scripts" / "comfyui.py"
    script.parent.mkdir(parents=True)
    monkeypatch.setattr(comfyui, "__file__", str(script))
    assert comfyui._places()[0] == around


def test_nothing_is_cloned_over_a_folder_that_is_there(comfyui, tmp_path, monkeypatch):
    (tmp_path / "ComfyUI").mkdir()
    monkeypatch.setattr(comfyui, "ROOT", tmp_path / "pack")
    assert comfyui.clone() is None


def test_a_clone_that_fails_leaves_nothing(comfyui, tmp_path, monkeypatch):
    monkeypatch.setattr(comfyui, "ROOT", tmp_path / "pack")
    monkeypatch.setattr(comfyui, "_SOURCE", str(tmp_path / "nowhere"))
    assert comfyui.clone() is None
    assert list(tmp_path.iterdir()) == []


def test_a_repository_is_cloned_beside_the_pack(comfyui, make_comfyui, tmp_path, monkeypatch):
    source = make_comfyui("source", "0.33.0")
    author = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for arguments in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "one")):
        subprocess.run(["git", *arguments], cwd=source, check=True)
    (tmp_path / "beside").mkdir()
    monkeypatch.setattr(comfyui, "ROOT", tmp_path / "beside" / "pack")
    monkeypatch.setattr(comfyui, "_SOURCE", source.as_uri())
    target = comfyui.clone()
    assert target == tmp_path / "beside" / "ComfyUI"
    assert comfyui.version(target) == (0, 33, 0)


def test_the_edit_from_the_command_line_is_the_one_that_the_workflow_ships():
    edit = in_scripts("import start; print(json.dumps(start.shipped_edit()))")
    number, kind, instruction, seed = edit
    assert isinstance(number, int) and isinstance(seed, int) and kind in EDITS
    assert len(instruction.split()) > 2


@pytest.mark.parametrize(
    "system, driver, listed, expected",
    [
        (
            "Linux",
            None,
            "torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0+cpu, 2.13.0",
            "torch==2.13.0+cpu",
        ),
        ("Linux", None, "Available versions: 2.15.0", "torch>=2.4"),
        ("Linux", "/usr/bin/nvidia-smi", "Available versions: 2.13.0+cpu", "torch>=2.4"),
        ("Darwin", None, "Available versions: 2.13.0+cpu", "torch>=2.4"),
    ],
)
def test_without_a_gpu_the_small_torch_is_preferred(system, driver, listed, expected):
    code = f"""
import environment as e, types
e.platform.system = lambda: {system!r}
e.shutil.which = lambda name: {driver!r}
e._python = lambda *a: types.SimpleNamespace(stdout={listed!r})
print(json.dumps(e._torch_to_install()))
"""
    assert in_scripts(code) == expected


def test_what_was_installed_is_not_installed_again(tmp_path):
    code = f"""
import environment as e, pathlib
folder, calls = pathlib.Path({str(tmp_path)!r}), []
e.FOLDER, e._DONE = folder, folder / "done"
e._torch_version = lambda: "2.9.0"
e._pip, e.tell = calls.append, lambda text: None
one, other = folder / "one.txt", folder / "other.txt"
one.write_text("torch\\npinned==1  # exact\\n\\n# nothing\\n")
other.write_text("pinned==2")
for file, pinned in ((one, True), (one, True), (other, True), (one, True), (one, False)):
    e.add_requirements(file, pinned=pinned)
print(json.dumps([call[2:] for call in calls]))
"""
    first = ["torch", "pinned==1"]
    assert in_scripts(code) == [first, ["pinned==2"], first, ["torch"]]


@pytest.mark.parametrize("inside", [False, True])
def test_comfyui_is_told_to_load_this_pack_alone(comfyui, make_comfyui, tmp_path, inside):
    """Linked into a folder of ours, unless it lies among ComfyUI's own packs already."""
    folder = make_comfyui("ComfyUI", "0.33.0")
    (folder / "custom_nodes").mkdir()
    if inside:
        (folder / "custom_nodes" / "my-copy").symlink_to(comfyui.ROOT, target_is_directory=True)
    work = tmp_path / "work"
    options = comfyui._pack_options(folder, work)
    assert options[:3] == [
        "--disable-all-custom-nodes",
        "--whitelist-custom-nodes",
        "my-copy" if inside else "mmada-parallel",
    ]
    assert (work / "packs" / "mmada-parallel").exists() != inside
    assert ("--extra-model-paths-config" in options) != inside


def test_a_comfyui_that_ends_while_starting_is_told_with_its_log(comfyui, make_comfyui, tmp_path):
    folder, log = make_comfyui("ComfyUI", "0.33.0"), tmp_path / "log" / "comfyui.log"
    (folder / "main.py").write_text("print('no such module')")
    start = comfyui.running(folder, Path(sys.executable), log, cpu=True)
    with pytest.raises(comfyui.SetupError, match="ended while starting; see .*comfyui.log"), start:
        pass
    assert log.read_text() == "no such module\n"

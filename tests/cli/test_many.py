"""Many answers by one command: a folder of pictures, several instructions, processes that share."""

import json
import shutil
import subprocess
import sys

import pytest
from mmada_parallel.cli import many, model
from PIL import Image

from .conftest import EDIT

FAST = ("--text-steps", 2, "--image-steps", 2)
OTHER = "make the background blue"


@pytest.fixture
def pictures(scene, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("b10.png", "b2.png"):
        shutil.copy(scene, folder / name)
    (folder / "notes.md").write_text("no picture")
    return folder


def test_each_instruction_for_each_picture_by_one_model(
    run, checkpoint, pictures, tmp_path, monkeypatch
):
    loads, load = [], model.load_source
    monkeypatch.setattr(
        model, "load_source", lambda *args, **more: loads.append(1) or load(*args, **more)
    )
    out = tmp_path / "edited"
    where = ("--model", checkpoint, "--out", out, *FAST, "--json")
    code, printed, err = run("edit", pictures, EDIT.instruction, OTHER, *where)
    answers = [json.loads(line) for line in printed.splitlines()]
    names = sorted(file.name for file in out.iterdir())
    assert code == 0 and len(loads) == 1 and len(answers) == len(names) == 4
    assert [answer["image"].rsplit("/", 1)[1][:3] for answer in answers] == ["b2_"] * 2 + [
        "b10"
    ] * 2
    assert names[0] == "b10_make-the-background-blue_0.png" and "4 of 4" in err
    with Image.open(out / names[0]) as image:
        assert image.text["instruction"] == OTHER and image.text["seed"] == "0"

    (out / names[0]).unlink()
    before = {name: (out / name).stat().st_mtime_ns for name in names[1:]}
    code, printed, err = run("edit", pictures, EDIT.instruction, OTHER, *where)
    assert code == 0 and len(printed.splitlines()) == 1 and "3 of 4 are there already" in err
    assert before == {name: (out / name).stat().st_mtime_ns for name in names[1:]}
    code, printed, _ = run("edit", pictures, EDIT.instruction, OTHER, *where)
    assert (code, printed, len(loads)) == (0, "", 2)  # nothing left: no model is loaded


def test_results_beside_the_pictures_are_not_edited_again(run, checkpoint, pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    where = ("--model", checkpoint, *FAST, "--quiet")
    for anew in (True, False):
        code, printed, _ = run("edit", ".", EDIT.instruction, OTHER, *where)
        assert (code, bool(printed)) == (0, anew)
        assert len(list(pictures.glob("*.png"))) == 2 + 4


def test_instructions_of_a_file_and_one_that_fails(run, checkpoint, pictures, tmp_path):
    wishes = tmp_path / "wishes.txt"
    wishes.write_text(f"{OTHER}\n\n{OTHER}!\n")
    (pictures / "a.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    where = ("--model", checkpoint, "--out", out, *FAST, "--quiet")
    code, _, err = run("edit", pictures, f"@{wishes}", *where)
    assert code == 2 and "2 of 6 pictures could not be made" in err.splitlines()[-1]
    assert "a.png" in err.splitlines()[0] and len(list(out.iterdir())) == 4
    assert "b2_make-the-background-blue_0_2.png" in {file.name for file in out.iterdir()}


def test_a_long_name_is_cut_and_the_others_go_on(run, checkpoint, pictures, tmp_path):
    for number in "12":
        shutil.copy(pictures / "b2.png", pictures / f"{'é' * 120}{number}.png")
    out = tmp_path / "out"
    where = ("--model", checkpoint, "--out", out, *FAST, "--quiet")
    for made in (4, 0):
        code, printed, err = run("edit", pictures, OTHER, *where)
        assert (code, err) == (0, "") and len(printed.splitlines()) == 2 * made
    names = sorted(file.name for file in out.iterdir())
    assert len(names) == 4 and names[2].endswith("éé_make-the-background-blue_0.png")


@pytest.mark.parametrize(
    "given, said",
    [
        (("--text-out", "text.txt"), "--text-out is of one picture"),
        (("--out", "one.png"), "give a folder for several"),
    ],
)
def test_what_is_of_one_picture_is_refused(run, pictures, given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("edit", pictures, OTHER, *given)
    assert code == 2 and said in err


def test_a_refusal_leaves_no_folder_behind(run, pictures, tmp_path):
    for wrong in (["--model", "nowhere"], ["--seed", "-1"]):
        assert run("edit", pictures, OTHER, "--out", tmp_path / "a" / "b", *wrong)[0] == 2
    assert not (tmp_path / "a").exists()


def test_empty_lists_are_refused(run, scene, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no picture" in run("edit", empty, OTHER)[2]
    (tmp_path / "list.txt").write_text("\n")
    assert "holds no instruction" in run("edit", scene, f"@{tmp_path / 'list.txt'}")[2]
    assert "no such file" in run("edit", scene, "@gone.txt")[2]


def test_a_negative_instruction_is_used_or_said_not_to_be(run, checkpoint, scene, tmp_path):
    where = ("--model", checkpoint, "--out", tmp_path / "out.png", *FAST, "--seed", 3)
    pictures = []
    for more in ((), ("--negative", "remove the red star")):
        code, _, err = run("edit", scene, EDIT.instruction, *where, "--put-back", "off", *more)
        assert code == 0 and "not used" not in err
        pictures.append((tmp_path / "out.png").read_bytes())
    with Image.open(tmp_path / "out.png") as image:
        assert image.text["negative"] == "remove the red star"
    assert pictures[0] != pictures[1]
    off = ("--joint-guidance", 0, "--negative", "remove the red star")
    assert "is not used, since guidance is off" in run("edit", scene, OTHER, *where, *off)[2]


@pytest.mark.exhaustive
def test_processes_share_the_pictures(checkpoint, pictures, tmp_path):
    pytest.importorskip("accelerate")
    out = tmp_path / "edited"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = ["-m", "mmada_parallel.cli", "edit", pictures, EDIT.instruction, OTHER, "--json"]
    where = ["--model", checkpoint, "--out", out, "--device", "cpu", *FAST]
    done = subprocess.run(
        list(map(str, launch + command + where)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(list(out.iterdir())) == 4


def test_instructions_of_reads_what_was_given(tmp_path):
    assert many.instructions_of("make it red") == ["make it red"]

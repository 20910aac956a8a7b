"""``mmada-parallel edit`` and ``generate``: what they write, print and refuse."""

import json
import os
import re
import signal
import sys
import time
import weakref

import pytest
import torch
from mmada_parallel.cli import draw, model
from mmada_parallel.mmp_core import SamplerSettings, batching
from PIL import Image

from .conftest import EDIT

FAST = ("--text-steps", 2, "--image-steps", 2)


@pytest.fixture
def edit(run, checkpoint, scene, tmp_path):
    """``edit(*arguments)``: the tiny model edits the scene into out.png."""

    def edit(*arguments, out=tmp_path / "out.png"):
        where = ("--model", checkpoint, "--out", out)
        return run("edit", scene, EDIT.instruction, *where, *FAST, *arguments)

    return edit


def the_line(err):
    """The one line on standard error that explains a refusal."""
    (line,) = err.splitlines()
    assert line.startswith("mmada-parallel")
    return line


def test_json_is_one_object_with_the_promised_keys(edit, tmp_path):
    code, out, err = edit("--seed", 5, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer.keys() == {"text", "image", "seed", "steps", "seconds"}
    assert answer["image"] == str(tmp_path / "out.png")
    assert (answer["seed"], answer["steps"]) == (5, 2)
    assert answer["seconds"] > 0
    assert "denoising" in err and "2/2" in err


def test_json_is_json_whatever_the_output_can_write(edit, tmp_path):
    out = tmp_path / "🦊.png"
    printed = edit("--quiet", "--json", out=out)[1]
    assert printed.isascii() and json.loads(printed)["image"] == str(out)


def test_the_picture_carries_how_it_was_made(edit, tmp_path):
    code, out, _ = edit("--seed", 5, "--json", "--joint-guidance", "1.5")
    with Image.open(tmp_path / "out.png") as image:
        assert (image.format, image.size, code) == ("PNG", (128, 128), 0)
        notes = image.text
    assert notes["instruction"] == EDIT.instruction
    assert notes["text"] == json.loads(out)["text"]
    assert (notes["seed"], notes["model"]) == ("5", "tiny")
    settings = SamplerSettings(**json.loads(notes["settings"]))
    assert settings == SamplerSettings(text_steps=2, image_steps=2, joint_guidance=1.5, seed=5)


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_other_formats_carry_it_too(edit, tmp_path, ending):
    code, _, err = edit("--seed", 5, "--quality", 80, out=tmp_path / f"out.{ending}")
    assert code == 0, err
    notes = json.loads(Image.open(tmp_path / f"out.{ending}").getexif()[0x010E])
    assert notes["instruction"] == EDIT.instruction and notes["seed"] == "5"
    assert json.loads(notes["settings"])["text_steps"] == 2


def test_a_seed_decides_the_result(edit, tmp_path):
    files = {name: tmp_path / f"{name}.png" for name in ("a", "b", "other")}
    texts = {}
    for name, seed in (("a", 3), ("b", 3), ("other", 4)):
        _, out, _ = edit("--seed", seed, "--json", out=files[name])
        texts[name] = json.loads(out)["text"]
    pixels = {name: Image.open(file).tobytes() for name, file in files.items()}
    assert (texts["a"], pixels["a"]) == (texts["b"], pixels["b"])
    assert pixels["other"] != pixels["a"]


def test_without_a_seed_each_run_has_its_own_and_tells_it(edit):
    seeds = [json.loads(edit("--json")[1])["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]


def test_plain_output_is_the_text_then_the_file(edit, tmp_path):
    code, out, _ = edit("--seed", 5, "--text-out", tmp_path / "deep" / "out.txt")
    lines = out.splitlines()
    assert code == 0
    assert lines[-1].startswith(f"{tmp_path / 'out.png'}  (seed 5, 2 steps, ")
    written = (tmp_path / "deep" / "out.txt").read_text(encoding="utf-8")
    assert written.splitlines() == lines[:-1]


def test_quiet_leaves_standard_error_empty(edit):
    assert edit("--quiet", "--json")[2] == ""


def test_generating_takes_no_picture_and_any_valid_size(run, checkpoint, tmp_path):
    where = ("--model", checkpoint, "--out", tmp_path / "made.png", *FAST)
    assert run("generate", "draw a red circle", *where, "--size", "96x64")[0] == 0
    assert Image.open(tmp_path / "made.png").size == (96, 64)


def test_the_default_name_tells_instruction_and_seed_and_replaces_nothing(
    run, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = ("generate", "Draw a RED circle!", "--model", checkpoint, "--seed", 9, *FAST)
    for _ in range(3):
        assert run(*command)[0] == 0
    names = {"draw-a-red-circle_9.png", "draw-a-red-circle_9_2.png", "draw-a-red-circle_9_3.png"}
    assert {file.name for file in tmp_path.iterdir()} == names


@pytest.mark.parametrize("instruction", ["../../etc", "…", "a/b\\c:d", "x" * 500, "色を変える"])
def test_default_names_are_plain_file_names(instruction):
    path = draw._free_path(instruction, 1)
    assert path.parent.name == "" and len(path.name.encode()) < 200


def test_a_picture_that_is_missing_is_told_whatever_the_instruction(run, tmp_path):
    code, _, err = run("edit", tmp_path / "missing.png", "y" * 300, "--quiet")
    assert code == 2 and "missing.png" in err and "yyy" not in err


def test_words_that_the_demo_does_not_know_are_named(edit, run, checkpoint, tmp_path):
    assert "does not know:" not in edit()[2]
    where = ("--model", checkpoint, "--out", tmp_path / "out.png", *FAST)
    assert "does not know: zebra" in run("generate", "draw a zebra", *where)[2]


def test_a_target_is_met_and_said(edit, tmp_path):
    steps = ("--text-steps", 12, "--image-steps", 12)
    code, _, err = edit(*steps, "--at-most-operations", 40)
    expected = re.search(r"for the target: (\d+) text steps.*Expected: (\d+) % of", err)
    took = re.search(r"Took (\d+) % of exact's operations and \S+ s", err)
    assert code == 0 and expected[2] == took[1] and 20 <= int(took[1]) <= 40
    with Image.open(tmp_path / "out.png") as image:
        settings = json.loads(image.text["settings"])
    assert settings["text_steps"] == int(expected[1])


@pytest.mark.parametrize(
    "options, said",
    [
        (("--at-most-operations", 0.5), "at_most_operations is 0.5 %, but with one step"),
        (("--at-most-operations", 101), "at_most_operations is 101.0; expected"),
        (("--at-most-seconds", 9, "--preset", "upstream"), "use the corrected preset"),
    ],
)
def test_a_target_that_cannot_be_met_is_refused(edit, tmp_path, options, said):
    code, _, err = edit(*options, "--quiet")
    assert code == 2 and said in the_line(err) and not (tmp_path / "out.png").exists()


def test_upstream_has_defaults_of_its_own(edit, tmp_path):
    assert edit("--preset", "upstream", "--image-temperature", "0.5")[0] == 0
    settings = json.loads(Image.open(tmp_path / "out.png").text["settings"])
    assert (settings["preset"], settings["image_guidance"]) == ("upstream", 4.0)
    assert settings["image_temperature"] == 0.5


REFUSED = {
    "no such picture": ("edit", "nowhere.png", "remove the star"),
    "not a picture": ("edit", "notes.txt", "remove the star"),
    "no such checkpoint": ("generate", "draw", "--model", "nowhere"),
    "empty instruction": ("generate", " "),
    "no size": ("generate", "draw", "--size", "large"),
    "zero text": ("generate", "draw", "--text-length", "0"),
    "steps out of range": ("generate", "draw", "--text-steps", "0"),
    "seed out of range": ("generate", "draw", "--seed", "-1"),
    "not a number": ("generate", "draw", "--seed", "one"),
    "guidance that upstream lacks": (
        "generate",
        "draw",
        "--preset",
        "upstream",
        "--joint-guidance",
        "2",
    ),
    "unknown ending": ("generate", "draw", "--out", "picture.tiff"),
    "no ending": ("generate", "draw", "--out", "picture"),
    "quality of a PNG": ("generate", "draw", "--out", "picture.png", "--quality", "80"),
    "quality out of range": ("generate", "draw", "--out", "picture.jpg", "--quality", "101"),
    "swapped": ("edit", "remove the star", "notes.txt"),
    "a folder to edit": ("edit", "folder.png", "remove the star"),
    "a folder": ("generate", "draw", "--out", "folder.png"),
    "below a file": ("generate", "draw", "--out", "notes.txt/picture.png"),
    "text below a file": ("generate", "draw", "--text-out", "notes.txt/text.txt"),
    "no device": ("generate", "draw", "--device", "mps"),
    "unknown option": ("generate", "draw", "--wings"),
    "unknown command": ("paint",),
    "missing instruction": ("edit", "scene.png"),
}


NAMES = {"long": "x" * 300, "long folder": "y" * 300 + "/a.png", "NUL": "a\0.png", "empty": ""}
WHERE = {
    "image": ("edit", "NAME", "remove the star"),
    "out": ("generate", "draw", "--out", "NAME"),
    "text-out": ("generate", "draw", "--text-out", "NAME"),
    "model": ("generate", "draw", "--model", "NAME"),
    "lora": ("generate", "draw", "--lora", "NAME"),
    "image-tokenizer": ("generate", "draw", "--image-tokenizer", "NAME"),
    "data": ("train", "sft", "--data", "NAME", "--output", "a.safetensors"),
    "output": ("train", "sft", "--data", "demo", "--output", "NAME"),
    "run-folder": ("train", "pararl", "--output", "a.safetensors", "--run-folder", "NAME"),
    "folder": ("train", "sft", "--folder", "NAME"),
    "reward": ("train", "pararl", "--output", "a.safetensors", "--reward", "clip:NAME"),
    "clip": ("evaluate", "--clip", "NAME"),
    "check": ("check", "NAME"),
    "convert from": ("convert", "NAME", "a.safetensors"),
    "convert to": ("convert", "demo", "NAME"),
}


@pytest.mark.parametrize("arguments", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_that_no_file_can_have_is_refused_before_the_work(
    run, tmp_path, monkeypatch, arguments, name
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model, "load_source", None)  # the work
    code, out, err = run(*(part.replace("NAME", name) for part in arguments))
    assert (code, out) == (2, "")
    assert any(said in the_line(err) for said in ("name", "called", "empty", "its folder"))


def test_a_missing_checkpoint_is_all_that_is_said(run, tmp_path):
    place, out = tmp_path / "gone", tmp_path / "out.png"
    code, printed, err = run("generate", "a red circle", "--model", place, "--out", out)
    assert (code, printed) == (2, "") and f"No checkpoint at {place}" in the_line(err)


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(
    run, checkpoint, scene, tmp_path, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    if arguments[:1] in (("edit",), ("generate",)) and "--model" not in arguments:
        arguments = (*arguments, "--model", checkpoint)
    code, out, err = run(*arguments, "--quiet")
    assert (code, out) == (2, "")
    assert the_line(err)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_while_writing_leaves_nothing_and_keeps_what_was_there(
    edit, tmp_path, monkeypatch
):
    (tmp_path / "out.png").write_bytes(b"the picture before")
    before = sorted(tmp_path.iterdir())

    def fail(image, file, **options):
        file.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    code, out, err = edit("--quiet")
    assert (code, out) == (2, "")
    assert "No space left" in the_line(err)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "out.png").read_bytes() == b"the picture before"


def test_a_gpu_that_is_too_small_is_told_with_the_numbers(edit, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(batching, "denoise", full)
    code, out, err = edit("--quiet")
    assert (code, out) == (2, "")
    assert "1 result of " in the_line(err) and "fp8" in err
    assert "in addition to the weights (" in err


def test_ctrl_c_stops_with_130_and_leaves_nothing(edit, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(draw, "denoise_in_batches", interrupt)
    code, out, err = edit("--quiet")
    assert (code, out, err) == (130, "", "\nmmada-parallel: stopped\n")
    assert [file.name for file in tmp_path.iterdir()] == ["scene.png"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_job_or_terminal_stops_as_ctrl_c_does(edit, tmp_path, monkeypatch, number):
    def stop(*args, **kwargs):
        os.kill(os.getpid(), number)

    monkeypatch.setattr(draw, "denoise_in_batches", stop)
    before = signal.signal(number, lambda *_: pytest.fail("it would have died"))
    try:
        assert edit("--quiet") == (130, "", "\nmmada-parallel: stopped\n")
    finally:
        signal.signal(number, before)
    assert [file.name for file in tmp_path.iterdir()] == ["scene.png"]


def test_under_nohup_the_end_of_the_terminal_stops_nothing(edit, tmp_path, monkeypatch):
    work = draw.denoise_in_batches

    def hung_up(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGHUP)
        return work(*args, **kwargs)

    monkeypatch.setattr(draw, "denoise_in_batches", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert edit("--quiet")[0] == 0 and (tmp_path / "out.png").exists()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_callback_whose_exceptions_are_ignored_is_not_lost(
    edit, tmp_path, monkeypatch, number
):
    def work(*args, **kwargs):
        kept = type("Kept", (), {})()
        callback = weakref.ref(kept, lambda _: os.kill(os.getpid(), number))
        del kept
        assert callback() is None
        for _ in range(1000):
            time.sleep(0.01)
        pytest.fail("the signal was lost")

    monkeypatch.setattr(draw, "denoise_in_batches", work)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert edit("--quiet") == (130, "", "\nmmada-parallel: stopped\n")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [file.name for file in tmp_path.iterdir()] == ["scene.png"]


def test_without_standard_error_the_work_is_done(edit, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert edit()[0] == 0 and (tmp_path / "out.png").exists()


def test_sizes_are_fitted_and_it_is_said(edit, run, checkpoint, tmp_path):
    where = ("--model", checkpoint, "--out", tmp_path / "out.png", *FAST)
    code, _, err = run("generate", "draw", *where, "--size", "100x70")
    assert code == 0 and "96x64 pixels, the nearest to 100x70" in err
    assert Image.open(tmp_path / "out.png").size == (96, 64)
    assert edit("--size", "64x")[0] == 0
    assert Image.open(tmp_path / "out.png").size == (64, 64)


def test_a_mask_selects_what_is_drawn_anew(edit, run, checkpoint, tmp_path, monkeypatch):
    prompts, encode = [], draw.encode_instruction
    monkeypatch.setattr(
        draw, "encode_instruction", lambda *a, **k: prompts.append(encode(*a, **k)) or prompts[-1]
    )
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 10, 10))
    mask.save(tmp_path / "mask.png")
    Image.new("L", (64, 64)).save(tmp_path / "blank.png")
    assert edit("--mask", tmp_path / "mask.png", "--grow", 1)[0] == 0
    masked = prompts[-1].initial.image == -1
    assert masked[:, :2, :2].all() and masked.sum() == 4
    code, _, err = edit("--mask", tmp_path / "blank.png")
    assert (
        code == 0 and "The mask is not painted" in err and (prompts[-1].initial.image == -1).all()
    )
    code, _, err = edit("--mask", tmp_path / "mask.png", "--coverage", "1.5")
    assert code == 2 and "coverage" in the_line(err)
    large = tmp_path / "large.png"
    Image.new("RGB", (512, 512), "white").save(large)
    options = ("--mask", tmp_path / "mask.png", "--model", checkpoint, *FAST)
    where = (*options, "--out", tmp_path / "out.png")
    assert run("edit", large, EDIT.instruction, *where)[0] == 0
    assert prompts[-1].placement[0].scale[0] < 2
    assert Image.open(tmp_path / "out.png").size == (512, 512)
    assert run("edit", large, EDIT.instruction, *where, "--put-back", "off")[0] == 0
    assert prompts[-1].placement[0].box == (0, 0, 512, 512)
    code, _, err = edit("--mask", tmp_path / "none.png")
    assert code == 2 and "no such file" in the_line(err)


@pytest.mark.parametrize(
    "instruction, expected", [("fais-le en hiver", "hiver"), ("red " * 300, "at most 256")]
)
def test_what_the_checkpoint_cannot_read_is_refused(
    run, checkpoint, tmp_path, instruction, expected
):
    where = ("--model", checkpoint, "--out", tmp_path / "out.png", *FAST)
    code, _, err = run("generate", instruction, *where)
    assert code == 2 and expected in err.splitlines()[-1]
    assert not (tmp_path / "out.png").exists()


def test_too_little_memory_is_refused_on_the_cpu_before_the_first_step(edit, monkeypatch, tmp_path):
    monkeypatch.setattr(batching, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(batching, "denoise", lambda *_, **__: pytest.fail("it began"))
    code, _, err = edit()
    assert code == 2 and "Too little memory: " in err.splitlines()[-1]


def test_names_with_undecodable_bytes_are_written_and_told(edit, tmp_path):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    code, said, err = edit("--quiet", out=out)
    assert code == 0, err
    assert os.path.exists(out) and "udcff.png" in said
    assert edit("--json", "--quiet", out=out)[0] == 0

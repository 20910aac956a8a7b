"""``--lora``: adapters of the command's model."""

import json

import pytest
from mmada_parallel.cli.main import build_parser
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.tests.training.adapted import stirred
from mmada_parallel.training.weights.adapter_files import base_metadata, read_adapter, save_adapter
from mmada_parallel.training.weights.policies import LoRA
from PIL import Image

FAST = ("--text-steps", 2, "--image-steps", 2, "--seed", 5)


@pytest.fixture(scope="module")
def file(checkpoint, tmp_path_factory):
    model = load_checkpoint(checkpoint)
    path = tmp_path_factory.mktemp("loras") / "edit.safetensors"
    lora = stirred(LoRA(model.transformer, rank=4))
    save_adapter(path, lora, base_metadata(model))
    return path


@pytest.fixture
def generate(run, checkpoint, tmp_path):
    """``generate(*arguments)``: the picture's values and its notes, or what is refused."""

    def generate(*arguments):
        where = ("--model", checkpoint, "--out", tmp_path / "out.png")
        code, _, err = run("generate", "a red star", *where, *FAST, *arguments)
        if code:
            return code, err
        with Image.open(tmp_path / "out.png") as image:
            return image.tobytes(), image.text

    return generate


def test_an_adapter_changes_the_picture_which_tells_of_it(generate, file):
    plain, notes = generate()
    assert "loras" not in notes
    adapted, notes = generate("--lora", f"{file}:0.5")
    assert adapted != plain and adapted == generate("--lora", f"{file}:0.5")[0]
    assert json.loads(notes["loras"]) == ["edit.safetensors:0.5"]


def test_two_halves_are_one_whole_and_opposites_none(generate, file):
    whole, _ = generate("--lora", file)
    halves, _ = generate("--lora", f"{file}:0.25", "--lora", f"{file}:0.75")
    assert halves == whole
    assert generate("--lora", f"{file}:0")[0] == generate()[0] != whole


@pytest.mark.parametrize(
    "given, expected",
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:-.5", ("a.safetensors", -0.5)),
        ("C:/loras/a.safetensors", ("C:/loras/a.safetensors", 1.0)),
        ("C:/loras/a.safetensors:2", ("C:/loras/a.safetensors", 2.0)),
        ("odd:name", ("odd:name", 1.0)),
    ],
)
def test_a_number_after_the_last_colon_is_the_strength(given, expected):
    args = build_parser().parse_args(["generate", "a red star", "--lora", given])
    [(path, strength)] = args.lora
    assert (path.as_posix(), strength) == expected


def test_a_strength_beyond_all_numbers_is_refused(generate):
    code, err = generate("--lora", f"a.safetensors:{'9' * 400}", "--quiet")
    assert code == 2 and "strength of a.safetensors is too large" in err


def test_a_file_that_is_not_there_is_told_in_one_line(generate):
    code, err = generate("--lora", "gone.safetensors:0.5", "--quiet")
    assert code == 2
    assert err.splitlines() == [
        "mmada-parallel: No adapter at gone.safetensors: give a .safetensors file, or a folder of "
        "PEFT."
    ]


def test_an_adapter_of_another_shape_is_told_in_one_line(run, file, tmp_path):
    where = ("--model", "demo", "--out", tmp_path / "out.png", "--quiet")
    code, _, err = run("generate", "a red star", *where, *FAST, "--lora", file)
    assert code == 2
    assert "is an adapter of another model" in err and len(err.splitlines()) == 1


def test_another_base_is_noted(run, checkpoint, file, tmp_path):
    other = tmp_path / "other.safetensors"
    save_adapter(other, read_adapter(file)[0], {"base_fingerprint": "another"})
    where = ("--model", checkpoint, "--out", tmp_path / "out.png", "--lora", other)
    code, _, err = run("generate", "a red star", *where, *FAST)
    assert code == 0
    assert "other.safetensors was trained on another checkpoint of the same shape" in err

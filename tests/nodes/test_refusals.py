"""What nodes refuse, and how ComfyUI shows it."""

import ast
import re

import pytest
import torch
from mmada_parallel.mmp_core import CheckpointError, InputError
from mmada_parallel.mmp_core.memory import OutOfMemory
from mmada_parallel.tests.hosts import PACK_ROOT

ROOMS = ("mmp_core", "nodes", "training", "views")
SAYING = ("InputError", "CheckpointError", "OutOfMemory", "NotFinite", "sentence")

PLAIN = {"width": 0, "height": 0, "text_length": 0}


def test_the_sentence_is_shown_without_the_path_of_the_module(nodes):
    import execution

    for error in (InputError, CheckpointError, OutOfMemory):
        assert execution.full_type_name(error) == error.__name__


@pytest.mark.parametrize(
    "instruction, expected",
    [("fais-le en hiver", "hiver"), (" ", "empty"), ("red " * 257, "at most 256")],
)
def test_an_instruction_that_cannot_be_read_is_refused(run_node, model, instruction, expected):
    with pytest.raises(InputError, match=expected):
        run_node("EncodeInstruction", model=model, instruction=instruction, **PLAIN)


def test_unknown_words_are_named_on_the_node(run_node, model):
    output = run_node("EncodeInstruction", model=model, instruction="make it winter", **PLAIN)
    assert "does not know: it, winter" in str(output.ui["text"])
    assert run_node("EncodeInstruction", model=model, instruction="make it red", **PLAIN).ui
    known = run_node("EncodeInstruction", model=model, instruction="make the star red", **PLAIN)
    assert known.ui is None


@pytest.mark.parametrize("previews", [1, 0])
def test_a_cpu_without_the_memory_refuses_before_the_first_step(
    host, model, encoded, denoised, monkeypatch, previews
):
    import comfy.model_management as management

    prompt = encoded()
    monkeypatch.setattr(management, "get_free_memory", lambda device: 10_000)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 0)
    monkeypatch.setattr(model.model.transformer, "forward", lambda *_, **__: pytest.fail("began"))
    for target in ({}, {"at_most_seconds": 60.0}):
        with pytest.raises(OutOfMemory, match="Too little memory") as told:
            denoised(prompt, preview_every=previews, **target)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("previews", [1, 0])
def test_a_run_whose_picture_a_cpu_cannot_decode_is_refused_before_it(
    host, model, encoded, denoised, monkeypatch, previews
):
    import comfy.model_management as management

    prompt = encoded(width=4096, height=4096)
    monkeypatch.setattr(management, "get_free_memory", lambda device: 5 * 10**9)
    monkeypatch.setattr(model.model.transformer, "forward", lambda *_, **__: pytest.fail("began"))
    expected = "a picture of 128x128 image tokens needs about 7.6 GB to be decoded"
    with pytest.raises(OutOfMemory, match=f"Too little memory: {expected}"):
        denoised(prompt, preview_every=previews)


def test_a_picture_that_a_cpu_cannot_decode_is_refused(run_node, model, monkeypatch):
    import comfy.model_management as management
    from mmada_parallel.mmp_core import TokenState

    monkeypatch.setattr(management, "get_free_memory", lambda device: 10**6)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 0)
    tokens = TokenState(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 128, 128).long())
    with pytest.raises(OutOfMemory, match="16.8 megapixels needs about 7.5 GB"):
        run_node("DecodeImage", model=model, tokens=tokens, fill="grey")


@pytest.mark.parametrize("name", ["joint_guidance", "text_guidance", "reasoning_guidance"])
def test_a_guidance_between_recommended_and_0_is_refused(encoded, denoised, name):
    shown = "guidance" if name == "joint_guidance" else name
    with pytest.raises(InputError, match=f"^{shown} is -0.5: give 0 or more, or set profile"):
        denoised(encoded(), **{name: -0.5})


@pytest.mark.parametrize(
    "widgets",
    [{"joint_guidance": 1.0, "preset": "upstream"}, {"joint_guidance": 101.0}],
    ids=["the model's refusal", "the gate's"],
)
def test_a_refusal_names_an_input_as_its_node_shows_it(encoded, denoised, widgets):
    with pytest.raises(InputError, match="^guidance (must be 0|is 101)"):
        denoised(encoded(), **widgets)


ELSEWHERE = ("mmp_core/checkpoint/hub.py", "training/loop/run_file.py")
"""Files whose words no node shows: downloads, and a comment in a file."""


def texts(file):
    """What a file says: its strings, without docstrings."""
    tree = ast.parse(file.read_text("utf-8"))
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in silent
        ):
            yield node.value


def test_no_sentence_of_a_node_names_an_option_of_the_command():
    files = [f for room in ROOMS for f in (PACK_ROOT / room).rglob("*.py")]
    named = {
        (file.name, text)
        for file in files
        if file.relative_to(PACK_ROOT).as_posix() not in ELSEWHERE
        for text in texts(file)
        if re.search(r"(^|[\s(`])--[a-z]|SamplerSettings[.(]", text)
    }
    assert len(files) > 100 and not named


WORDS = {
    *("low_confidence", "dense_prediction", "multi_view"),
    *("fit_image", "squash_image", "load_image", "pixel_range"),
    *("crop_sizes", "h_ratio", "w_ratio", "max_ratio"),
    *("added_tokens", "embedding_size", "vocab_size", "model_type", "n_layers", "weight_map"),
    *("lora_alpha", "path_initial_model_for_weight_conversion"),
    *("open_clip", "open_clip_torch", "save_to_disk"),
}
"""Choices; arguments in Python; fields in files; names of other programs."""


def test_a_field_that_a_sentence_names_is_shown_by_a_node(classes):
    """Only an input that is shown as it is called in the code, or its shown name."""
    shown = {i.display_name or i.id for n in classes.values() for i in n.define_schema().inputs}
    named = {}
    for room in ROOMS:
        for file in (PACK_ROOT / room).rglob("*.py"):
            for call in ast.walk(ast.parse(file.read_text("utf-8"))):
                if not isinstance(call, ast.Call) or getattr(call.func, "id", "") not in SAYING:
                    continue
                for part in (p for a in call.args for p in ast.walk(a)):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        for word in re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", part.value):
                            named[word] = f"{file.name}: {part.value}"
    assert "record_steps" in named and named.keys() >= WORDS
    assert not {word: said for word, said in named.items() if word not in {*shown, *WORDS}}

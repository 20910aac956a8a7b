"""What nodes refuse, and how ComfyUI shows it."""

import pytest
import torch
from mmada_parallel.mmp_core import CheckpointError, InputError
from mmada_parallel.mmp_core.memory import OutOfMemory

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
    with pytest.raises(OutOfMemory, match="Too little memory") as told:
        denoised(prompt, preview_every=previews)
    assert "\n" not in str(told.value)


def test_a_picture_that_a_cpu_cannot_decode_is_refused(run_node, model, monkeypatch):
    import comfy.model_management as management
    from mmada_parallel.mmp_core import TokenState

    monkeypatch.setattr(management, "get_free_memory", lambda device: 10**6)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 0)
    tokens = TokenState(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 128, 128).long())
    with pytest.raises(OutOfMemory, match="16.8 megapixels needs about 51.5 GB"):
        run_node("DecodeImage", model=model, tokens=tokens, fill="grey")


@pytest.mark.parametrize("name", ["joint_guidance", "text_guidance", "reasoning_guidance"])
def test_a_guidance_between_recommended_and_0_is_refused(encoded, denoised, name):
    with pytest.raises(InputError, match=f"{name} is -0.5: give 0 or more"):
        denoised(encoded(), **{name: -0.5})

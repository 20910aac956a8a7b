"""The smallest case of each fault of a seventh search: prompts, tokens, names and pictures."""

from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import (
    InputError,
    SamplerSettings,
    TokenState,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.adapters import adapter_state
from mmada_parallel.mmp_core.image.files import load_image, load_mask, read_original
from PIL import Image

from .test_corpus import refused

FAST = SamplerSettings(text_steps=1, image_steps=1)


@pytest.fixture
def prompt(place):
    return encode_instruction(place.model, "make it red", Image.new("RGB", (64, 48), "red"))


@pytest.mark.parametrize("name", ["instruction", "unconditional", "image", "reference", "negative"])
def test_a_prompt_of_other_numbers(prompt, name):
    value = getattr(prompt, name)
    value = prompt.image if value is None and name == "reference" else value
    value = prompt.instruction if value is None else value
    for change in (value.float(), value * float("nan"), value.to(torch.complex64), value.int()):
        refused(lambda change=change: replace(prompt, **{name: change}), f"{name} is torch")


def test_a_prompt_of_an_empty_picture(prompt):
    refused(lambda: replace(prompt, image=prompt.image[..., :0]), "of a picture at least one")


def test_a_template_of_other_tokens(place, prompt):
    other = replace(prompt, unconditional=-prompt.unconditional - 5)
    refused(lambda: denoise(place.model, other, FAST), "The instruction's template has tokens")


def test_tokens_that_are_not_in_memory(prompt):
    many = torch.zeros(1, 1, dtype=torch.int64).expand(1, 2**33)
    refused(lambda: TokenState(many, torch.zeros(1, 1, 1).long()), "text has 8589934592 tokens")
    refused(lambda: replace(prompt, instruction=many), "instruction has 8589934592 tokens")


@pytest.mark.parametrize("strange", ["abc", (1, 2), 1.5, 10**12, b"x" * 300])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_a_picture_of_a_strange_transparency(mode, strange):
    for read in (load_image, load_mask, read_original):
        image = Image.new(mode, (4, 4))
        image.info["transparency"] = strange
        try:
            assert read(image).size == (4, 4)
        except InputError as error:
            assert "cannot be converted" in str(error)


@pytest.mark.parametrize("tensors", [None, 5, [1], "x"])
def test_an_adapter_that_is_no_mapping(tensors):
    refused(lambda: adapter_state(tensors, "it"), "it is ", "; expected tensors of a LoRA")


@pytest.mark.parametrize("use", [{"operations": None}, {"attention": None}])
def test_layers_that_are_none(place, use):
    refused(lambda: load_checkpoint(place.folder / "A", **use), "operations or attention")


def test_a_message_with_bytes_that_are_no_text_can_be_sent():
    assert str(InputError("b\udcff_00001 is gone")).encode() == b"b\\udcff_00001 is gone"

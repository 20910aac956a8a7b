import random

import pytest
import torch
from mmada_parallel.mmp_core import (
    MASKED,
    InputError,
    TokenState,
    decode_image,
    decode_pixels,
    decode_text,
    encode_instruction,
    load_checkpoint,
    masked_pixels,
)
from mmada_parallel.tests.mmp_core import tiny
from PIL import Image


@pytest.fixture(params="AM", scope="module")
def model(request, tmp_path_factory):
    return load_checkpoint(
        tiny.write_checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param)
    )


def picture(width, height):
    return Image.effect_noise((width, height), 60).convert("RGB")


def test_defaults(model):
    side = model.default_image_size
    prompt = encode_instruction(model, "make it red")
    assert prompt.image is None and prompt.initial.grid == (4, 4)
    assert prompt.initial.text.shape == (1, 5) and (prompt.initial.text == MASKED).all()
    edit = encode_instruction(model, "make it red", picture(4 * side, 3 * side), batch=2)
    assert edit.batch == 2 and edit.initial.grid == edit.image.shape[1:]
    assert edit.initial.grid == {"A": (3, 4), "M": (4, 4)}[model.variant.id]  # fitted; squashed
    assert torch.equal(edit.image[0], edit.image[1])


def test_output_size_is_free_of_the_input(model):
    unit = model.downsample
    prompt = encode_instruction(
        model, "x", picture(90, 70), size=(3 * unit, 2 * unit), text_length=7
    )
    assert prompt.initial.grid == (2, 3) and prompt.initial.text.shape == (1, 7)
    wrong = (3 * unit + 1, 2 * unit)
    with pytest.raises(InputError, match=f"nearest that is: {3 * unit}x{2 * unit}"):
        encode_instruction(model, "x", size=wrong)
    with pytest.raises(InputError, match="nearest"):
        encode_instruction(model, "x", size=(0, unit))


@pytest.mark.parametrize(
    "size", ["16x16", (16.0, 16.0), (16,), (float("nan"), 16), 16, (16, 16, 3)]
)
def test_sizes_that_are_none(model, size):
    with pytest.raises(InputError, match=r"size is .* expected \(width, height\) in whole pixels"):
        encode_instruction(model, "x", size=size)


@pytest.mark.parametrize(
    "wrong",
    [{"region": "whole"}, {"region": (0, 0, 9)}, {"task": 5}, {"offset": "left"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_other_values_of_a_wrong_kind(model, wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name} is "):
        encode_instruction(model, "x", picture(90, 70), **wrong)


def test_input_errors(model):
    with pytest.raises(InputError, match="text_length"):
        encode_instruction(model, "x", text_length=0)
    with pytest.raises(InputError, match="batch"):
        encode_instruction(model, "x", batch=0)
    with pytest.raises(InputError, match="no such file"):
        encode_instruction(model, "x", "/nowhere.png")


def test_offset_is_passed_on(model):
    if model.variant.id == "M":
        pytest.skip("variant M does not crop")
    wide = Image.linear_gradient("L").resize((400, 16)).rotate(90).resize((300, 40)).convert("RGB")
    centre = encode_instruction(model, "x", wide).image
    assert torch.equal(centre, encode_instruction(model, "x", wide, offset="center").image)
    drawn = [encode_instruction(model, "x", wide, offset=random.Random(i)).image for i in range(5)]
    assert torch.equal(
        drawn[1], encode_instruction(model, "x", wide, offset=random.Random(1)).image
    )


def test_decoding_any_state(model):
    unit, codes = model.downsample, torch.tensor([[[1, 2, 3], [4, MASKED, 5]]])
    state = TokenState(torch.tensor([[1, MASKED]]), codes)
    (image,) = decode_image(model, state, fill=(1.0, 0.0, 0.0))
    assert image.size == (3 * unit, 2 * unit)
    assert image.getpixel((unit + 1, unit + 1)) == (255, 0, 0)
    pixels = decode_pixels(model, state, fill=(0.0, 0.0, 1.0))
    assert pixels.shape == (1, 2 * unit, 3 * unit, 3) and pixels.dtype == torch.float32
    assert ((0 <= pixels) & (pixels <= 1)).all()
    assert pixels[0, -1, unit + 1].tolist() == [0, 0, 1]
    mask = masked_pixels(model, state)
    assert mask.sum() == unit**2 and mask[0, unit, unit] and not mask[0, 0, 0]
    assert decode_text(model, state, masked="_") == ["a _"]
    nothing = TokenState.masked(2, 3, (1, 1))
    assert (decode_pixels(model, nothing) - 0.5).abs().max() < 0.01
    assert decode_text(model, nothing) == ["", ""]


def test_decided_picture_is_the_tokenizers(model):
    codes = torch.tensor([[[1, 2], [3, 4]]])
    state = TokenState(torch.zeros(1, 1, dtype=torch.int64), codes)
    low, high = model.image_tokenizer.pixel_range
    expected = (model.image_tokenizer.decode(codes) - low) / (high - low)
    torch.testing.assert_close(decode_pixels(model, state).permute(0, 3, 1, 2), expected)

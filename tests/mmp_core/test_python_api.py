"""What a script may give the exported functions: used, or refused in one sentence."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import (
    InputError,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
    masked_pixels,
    put_back,
)
from PIL import Image

PICTURE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo", dtype=torch.float32)


@pytest.fixture(scope="module")
def prompt(demo):
    return encode_instruction(demo, "make the star red", PICTURE, text_length=4)


def tokens(text=5, code=0, batch=1):
    return TokenState(torch.full((batch, 4), text), torch.full((batch, 2, 2), code))


def steps(**changes):
    return SamplerSettings(**{"text_steps": 1, "image_steps": 1, "joint_guidance": 0.0, **changes})


def test_numbers_of_numpy_are_numbers(demo, prompt):
    settings = steps(text_steps=np.int64(2), image_temperature=np.float32(1), seed=np.int64(3))
    assert settings == steps(text_steps=2, seed=3)
    json.dumps(asdict(settings))
    run = denoise(demo, prompt, settings, record=np.int64(1))
    assert len(run) == 1
    seeds = denoise(demo, prompt, steps(seed=list(np.array([3])))).final
    assert torch.equal(seeds.image, denoise(demo, prompt, steps(seed=3)).final.image)
    for wrong in (True, np.bool_(True), np.float64(1.5), math.nan):
        with pytest.raises(InputError, match="^text_steps is"):
            steps(text_steps=wrong)


@pytest.mark.parametrize("record", [-1, 1.5, math.nan, "2", True])
def test_how_many_steps_to_record(demo, prompt, record):
    with pytest.raises(InputError, match="^record is .*; expected a whole number from 0 up"):
        denoise(demo, prompt, steps(), record=record)


def test_settings_and_batches_that_are_none(demo, prompt):
    for settings in ({}, SamplerSettings, "fast"):
        with pytest.raises(InputError, match="^settings is"):
            denoise(demo, prompt, settings)
    with pytest.raises(InputError, match="batch of 0"):
        denoise(demo, prompt[1:], steps())
    with pytest.raises(TypeError, match=r"\[0:1\]"):
        prompt[0]
    with pytest.raises(InputError, match="^profile is 'best'"):
        SamplerSettings.of_profile("best", demo.variant)


def test_tokens_that_the_checkpoint_does_not_have(demo):
    for text in (10**4, 2**40, -2):
        with pytest.raises(InputError, match="The text has tokens outside 0 to 271"):
            decode_text(demo, tokens(text=text))
    for code in (10**4, -2):
        with pytest.raises(InputError, match="codes range over"):
            decode_image(demo, tokens(code=code))
    assert decode_image(demo, tokens(batch=0)) == decode_text(demo, tokens(batch=0)) == []


@pytest.mark.parametrize("fill", ["red", (1, 2), (255, 0, 0), (math.nan,) * 3, 7, None])
def test_colours_that_are_none(demo, fill):
    with pytest.raises(InputError, match="^fill is"):
        decode_image(demo, tokens(code=-1), fill=fill)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(64, 64, 3).to_sparse(), torch.zeros(64, 64, 3, device="meta")]
)
def test_tensors_without_pixels(demo, prompt, pixels):
    for use in (
        lambda: encode_instruction(demo, "make the star red", pixels),
        lambda: encode_instruction(demo, "make the star red", PICTURE, mask=pixels),
        lambda: put_back(demo, prompt, pixels, tokens()),
        lambda: put_back(demo, prompt, PICTURE, pixels),
    ):
        with pytest.raises(InputError, match="sparse or has no values"):
            use()


def test_a_picture_that_was_closed_and_a_matrix(demo, prompt, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    with pytest.raises(InputError, match="the image given cannot be read"):
        put_back(demo, prompt, closed, tokens())
    with pytest.warns(PendingDeprecationWarning):
        grey = np.matrix(np.ones((64, 64)))
    drawn = TokenState(torch.zeros(1, 4).long(), torch.zeros(prompt.initial.image.shape).long())
    assert put_back(demo, prompt, grey, drawn, mode="all")[0].shape == (64, 64)


@pytest.mark.parametrize("value", [7, "text", b"x", [], torch.zeros(2), np.array([1, 2])])
def test_what_is_no_prompt_no_tokens_and_no_function(demo, prompt, value):
    run = denoise(demo, prompt, steps())
    for name, use in (
        ("prompt", lambda: denoise(demo, value, steps())),
        ("prompt", lambda: put_back(demo, value, PICTURE, tokens())),
        ("callback", lambda: denoise(demo, prompt, steps(), callback=value)),
        ("settings", lambda: put_back(demo, prompt, PICTURE, tokens(), settings=value)),
        ("state", lambda: decode_text(demo, value)),
        ("state", lambda: decode_image(demo, value)),
        ("state", lambda: masked_pixels(demo, value)),
        ("initial", lambda: prompt.starting_from(value)),
        ("fraction", lambda: run.at(value)),
        ("dtype", lambda: load_checkpoint("demo", dtype=value)),
        ("device", lambda: load_checkpoint("demo", device=2**63)),
    ):
        with pytest.raises(InputError, match=f"^{name} is"):
            use()
    if not isinstance(value, torch.Tensor):
        with pytest.raises(InputError, match="^text is"):
            TokenState(value, run.final.image)
    if not isinstance(value, str):
        with pytest.raises(InputError, match="^masked is"):
            decode_text(demo, run.final, masked=value)


def test_tokens_of_another_batch_than_the_prompts(prompt):
    with pytest.raises(InputError, match="tokens are a batch of 3, the prompt one of 1"):
        prompt.starting_from(tokens(batch=3))

"""What a script may give the exported functions: used, or refused in one sentence."""

import json
import math
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import (
    InputError,
    Prompt,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_pixels,
    decode_text,
    denoise,
    encode_image,
    encode_instruction,
    load_checkpoint,
    masked_pixels,
    put_back,
)
from mmada_parallel.mmp_core.batching import chosen_in_batches, denoise_in_batches
from mmada_parallel.mmp_core.checkpoint.tokens import load_tokens, save_tokens
from mmada_parallel.mmp_core.editing import (
    extended,
    fixed_text,
    pattern_selected,
    reopened,
    text_pieces,
    tokens_for,
    words_selected,
)
from mmada_parallel.mmp_core.sampler.settings import Target
from mmada_parallel.mmp_core.variation import (
    Confidence,
    confidence_in,
    predicted_confidence,
    varied,
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


@pytest.mark.parametrize("value", [None, "demo", np.zeros(2), torch.zeros(2), SamplerSettings()])
def test_what_is_no_model(prompt, tmp_path, value):
    state = tokens()
    save_tokens(tmp_path / "tokens.safetensors", state, load_checkpoint("demo"))
    for use in (
        lambda: encode_instruction(value, "make the star red"),
        lambda: encode_image(value, PICTURE),
        lambda: denoise(value, prompt, steps()),
        lambda: denoise_in_batches(value, prompt, steps()),
        lambda: chosen_in_batches(value, prompt, steps(), Target()),
        lambda: decode_text(value, state),
        lambda: decode_image(value, state),
        lambda: decode_pixels(value, state),
        lambda: masked_pixels(value, state),
        lambda: put_back(value, prompt, PICTURE, state),
        lambda: save_tokens(tmp_path / "new.safetensors", state, value),
        lambda: load_tokens(tmp_path / "tokens.safetensors", value),
        lambda: text_pieces(value, state),
        lambda: fixed_text(value, "red", 4),
        lambda: predicted_confidence(value, prompt, state),
    ):
        with pytest.raises(InputError, match="^model is .*; expected a loaded checkpoint"):
            use()


@pytest.mark.parametrize("value", [7, "fast", np.array([1, 2]), torch.zeros(2)])
def test_what_batches_and_policies_are_not(demo, prompt, value):
    for name, use in (
        ("policies", lambda: denoise(demo, prompt, steps(), policies=value)),
        ("prompt", lambda: denoise_in_batches(demo, value, steps())),
        ("settings", lambda: denoise_in_batches(demo, prompt, value)),
        ("callback", lambda: denoise_in_batches(demo, prompt, steps(), callback=value)),
        ("on_batch", lambda: denoise_in_batches(demo, prompt, steps(), on_batch=value)),
        ("target", lambda: chosen_in_batches(demo, prompt, steps(), value)),
        ("prompts", lambda: Prompt.stack([prompt, value])),
        ("initial", lambda: replace(prompt, initial=value)),
        ("placement", lambda: replace(tokens(), placement=value)),
        ("offset", lambda: encode_image(demo, PICTURE, offset=value)),
    ):
        with pytest.raises(InputError, match=f"^{name} is"):
            use()
    for name in ("instruction", "unconditional", "image", "reference", "negative"):
        with pytest.raises(InputError, match=f"^{name} is .*; expected a tensor of [23] dim"):
            replace(prompt, **{name: value})


@pytest.mark.parametrize("value", [7, [], np.array([1, 2]), torch.zeros(2)])
def test_families_and_tasks_that_are_no_names(demo, value):
    with pytest.raises(InputError, match="is not a checkpoint family"):
        load_checkpoint("demo", family=value)
    with pytest.raises(InputError, match="is not a checkpoint family"):
        SamplerSettings.of_profile("recommended", value)
    for use in (SamplerSettings.upstream, partial(SamplerSettings.of_profile, "reference")):
        with pytest.raises(InputError, match="^task is"):
            use(demo.variant, task=value)


def test_tokens_without_values():
    whole = tokens()
    for empty in (whole.text.to("meta"), whole.text.to_sparse()):
        with pytest.raises(InputError, match="text is sparse or has no values"):
            TokenState(empty, whole.image)
    with pytest.raises(InputError, match="TokenState needs int64"):
        TokenState(whole.text.float(), whole.image)


@pytest.mark.parametrize("value", [b"x", {}, object(), np.array([1, 2]), torch.zeros(2), 10**400])
def test_what_cannot_be_edited_or_varied(demo, prompt, value):
    state = tokens()
    confidence = Confidence(torch.ones(state.text.shape), torch.ones(state.image.shape))
    sides = dict.fromkeys(("top", "right", "bottom"), 0)
    for name, use in (
        ("state", lambda: text_pieces(demo, value)),
        ("pieces", lambda: words_selected(value, "1")),
        ("pieces", lambda: pattern_selected([value], "a")),
        ("state", lambda: reopened(value)),
        ("text", lambda: reopened(state, text=value)),
        ("image", lambda: reopened(state, image=value)),
        ("length", lambda: fixed_text(demo, "red", value)),
        ("rest", lambda: fixed_text(demo, "red", 4, value)),
        ("prompt", lambda: extended(value, left=1, **sides)),
        ("left", lambda: extended(prompt, left=value, **sides)),
        ("left", lambda: tokens_for(prompt, 8, {"left": value}, of_original=True)),
        ("sides", lambda: tokens_for(prompt, 8, {"middle": 1}, of_original=True)),
        ("trajectory", lambda: confidence_in(value)),
        ("state", lambda: varied(value, confidence)),
        ("confidence", lambda: varied(state, value)),
        ("The share of the text", lambda: varied(state, confidence, text=value)),
    ):
        with pytest.raises(InputError, match=f"^{name} is"):
            use()


def test_notes_that_no_file_can_hold(demo, tmp_path):
    for notes in ("text", {"seed": 7}, {7: "seed"}, {"words": "\ud800"}, {"\ud800": "words"}):
        with pytest.raises(InputError, match="^(notes|seed|The name of a note|words) (is|has)"):
            save_tokens(tmp_path / "tokens.safetensors", tokens(), demo, notes)
    assert not list(tmp_path.iterdir())

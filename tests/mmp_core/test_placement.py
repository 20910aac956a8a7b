"""Where the model's picture lies in the original, in both directions, and who passes that on."""

import json
import random
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core import (
    InputError,
    Prompt,
    SamplerSettings,
    TokenState,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.batching import concatenated
from mmada_parallel.mmp_core.checkpoint.tokens import load_tokens, save_tokens
from mmada_parallel.mmp_core.editing import extended, reopened
from mmada_parallel.mmp_core.image.placement import Placement
from mmada_parallel.mmp_core.variants.registry import VARIANTS
from mmada_parallel.tests.mmp_core import tiny
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SIZES = [(2217, 1663), (1001, 1503), (1600, 401), (517, 513), (90, 90)]
SIDE, UNIT = 512, 16


@pytest.fixture(scope="module", params=["A", "M", "demo"])
def model(request, tmp_path_factory):
    if request.param == "demo":
        return load_checkpoint("demo")
    return load_checkpoint(tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"), request.param))


def seen(variant, picture, offset="center"):
    """The picture as the model sees it, and where it lies."""
    size = variant.input_size(picture.size, SIDE, UNIT)
    state = offset.getstate() if offset != "center" else None
    fitted = variant.fit(picture, size, offset=offset)
    if offset != "center":
        offset.setstate(state)
    placement = variant.placement(picture.size, size, offset=offset)
    assert placement.size == fitted.size == size and placement.original == picture.size
    return fitted, placement


def crossing(levels):
    """Where a line that is dark at one end and bright at the other crosses the middle level, its
    pixels reaching from 0 to 1, 1 to 2, …"""
    bright = levels >= 127.5
    index = int(np.argmax(bright != bright[0]))
    low, high = levels[index - 1], levels[index]
    return index - 0.5 + (127.5 - low) / (high - low)


@pytest.mark.parametrize("variant", VARIANTS[:2], ids=lambda variant: variant.id)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 3])
def test_a_checkerboards_corners_are_where_the_placement_says(variant, size, seed):
    """Within half a pixel of the model's picture; one corner per field, from both sides."""
    width, height = size
    for fx, fy in ((0.5, 0.5), (0.37, 0.66), (0.61, 0.35)):
        corner = round(width * fx), round(height * fy)
        board = np.zeros((height, width), np.uint8)
        board[: corner[1], : corner[0]] = board[corner[1] :, corner[0] :] = 255
        offset = "center" if seed is None else random.Random(seed)
        fitted, placement = seen(variant, Image.fromarray(board).convert("RGB"), offset)
        x, y = placement.to_model(*corner)
        assert placement.to_original(x, y) == pytest.approx(corner)
        if not (8 < x < fitted.width - 8 and 8 < y < fitted.height - 8):
            continue
        levels = np.asarray(fitted, np.float64)[..., 0]
        assert abs(crossing(levels[int(y) - 6]) - x) < 0.5
        assert abs(crossing(levels[:, int(x) - 6]) - y) < 0.5


def noise(size, seed=0):
    """Something with detail at all scales, as photographs have it."""
    rng, (width, height) = np.random.default_rng(seed), size
    total = np.zeros((height, width))
    for cell in (2, 8, 32, 128):
        coarse = rng.random((height // cell + 2, width // cell + 2)).astype(np.float32)
        total += np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray((total / total.max() * 255).clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("variant", VARIANTS[:2], ids=lambda variant: variant.id)
@pytest.mark.parametrize("size", SIZES[:3])
def test_the_box_resized_at_once_lies_on_what_the_model_sees(variant, size):
    """By phase correlation, within a tenth of a pixel of the model's picture."""
    source = noise(size)
    fitted, placement = seen(variant, source)
    box = source.resize(placement.size, Image.Resampling.BICUBIC, box=placement.box)
    assert max(map(abs, shift(box, fitted))) < 0.1


def shift(one, other):
    """(x, y) by which ``other`` lies off ``one``: the slope of the phase of their spectra's product
    over the low frequencies, where both pictures have the same detail."""
    arrays = [np.asarray(picture.convert("L"), np.float64) for picture in (one, other)]
    window = np.outer(*(np.hanning(n) for n in arrays[0].shape))
    spectra = [np.fft.fft2((a - a.mean()) * window) for a in arrays]
    cross = spectra[0] * spectra[1].conj()
    fy, fx = (np.fft.fftfreq(n) for n in cross.shape)
    low = np.hypot(*np.meshgrid(fx, fy)) < 0.15
    weights = np.sqrt(np.abs(cross[low]))
    grid = np.stack(np.meshgrid(fx, fy), -1)[low]
    phase = np.angle(cross[low]) / (2 * np.pi)
    return np.linalg.lstsq(grid * weights[:, None], phase * weights, rcond=None)[0]


def test_the_measure_of_shifts_is_right():
    source = noise((400, 300))
    moved = source.resize((380, 280), Image.Resampling.BICUBIC, box=(10.3, 9.6, 390.3, 289.6))
    still = source.resize((380, 280), Image.Resampling.BICUBIC, box=(10, 10, 390, 290))
    assert shift(still, moved) == pytest.approx((-0.3, 0.4), abs=0.02)


sides = st.integers(1, 5000)
edges = st.integers(0, 40)


@settings(max_examples=50)
@given(sides, sides, sides, sides, edges, edges, edges, edges)
def test_there_and_back(width, height, wide, high, left, top, right, bottom):
    start = Placement.whole((width, height)).resized((wide, high))
    wider = start.extended(left, top, right, bottom)
    assert wider.margins == (left, top, right, bottom)
    assert wider.input.size == start.size and wider.input.box == pytest.approx(start.box, abs=1e-6)
    assert wider.to_original(*wider.to_model(7.5, 3)) == pytest.approx((7.5, 3), abs=1e-6)
    inside = wider.within((2 * width, 2 * height), 5, 6)
    assert inside.to_original(0, 0) == pytest.approx((wider.box[0] + 5, wider.box[1] + 6), abs=1e-6)
    assert wider.in_size((3 * width, 2 * height)).to_model(0, 0) == pytest.approx(
        (-wider.box[0] / wider.scale[0], -wider.box[1] / wider.scale[1]), abs=1e-6
    )
    assert Placement(**{n: tuple(v) for n, v in json.loads(json.dumps(asdict(wider))).items()}) == (
        wider
    )


@pytest.mark.parametrize(
    "values",
    [
        dict(box=(0, 0, 0, 5)),
        dict(original=(0, 5)),
        dict(size=(0, 5)),
        dict(margins=(3, 0, 2, 0)),
        dict(margins=(-1, 0, 0, 0)),
        dict(box=(0, 0, float("nan"), 5)),
    ],
)
def test_what_is_no_part_of_a_picture_is_no_placement(values):
    with pytest.raises(ValueError, match="no part of a picture"):
        Placement(**{"original": (5, 5), "box": (0, 0, 5, 5), "size": (5, 5), **values})


def prompt_of(model, width=611, height=400, **options):
    picture = noise((width, height))
    return encode_instruction(model, "make the circle red", picture, **options)


def test_a_prompt_says_where_its_picture_lies(model):
    prompt = prompt_of(model)
    (placement,) = prompt.placement
    unit = model.downsample
    assert placement.original == (611, 400) and placement.margins == (0, 0, 0, 0)
    assert placement.size == (prompt.initial.grid[1] * unit, prompt.initial.grid[0] * unit)
    left, top, right, bottom = placement.box
    if model.variant.id == "M":
        assert placement.box == (0, 0, 611, 400)
    else:
        assert abs(left + right - 611) <= placement.scale[0] + 1e-6  # cut by whole pixels
        assert abs(top + bottom - 400) <= placement.scale[1] + 1e-6
        assert placement.scale[0] == pytest.approx(placement.scale[1], rel=0.05)
    wide = prompt_of(model, size=(4 * unit, 2 * unit)).placement[0]
    assert wide.box == placement.box and wide.size == (4 * unit, 2 * unit)
    assert encode_instruction(model, "make the circle red").placement is None


def test_orientation_is_applied_once(model):
    picture = noise((300, 200))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert encode_instruction(model, "x", turned).placement == prompt_of(model, 300, 200).placement


def test_placements_pass_through_all_that_is_done_to_tokens(model, tmp_path):
    one, two = prompt_of(model), prompt_of(model, 500, 400)
    if one.initial.grid != two.initial.grid:
        two = prompt_of(model, 612, 401)
    both = Prompt.stack([one, two])
    places = (*one.placement, *two.placement)
    assert both.placement == places and places[0] != places[1]
    assert both.repeat(2).placement == (places[0], places[0], places[1], places[1])
    assert both[1:].placement == places[1:]
    assert both[torch.tensor([1, 0])].placement == places[::-1]
    assert both.without_instruction().placement == places
    few = SamplerSettings(seed=0, text_steps=2, image_steps=2)
    run = denoise(model, both, few)
    assert run.final.placement == places
    assert (
        {step.after.placement for step in run} == {step.guess.placement for step in run} == {places}
    )
    assert concatenated([run, denoise(model, one, few)]).final.placement == (*places, places[0])
    locked = reopened(run.final, text=torch.ones(1, 1, dtype=torch.bool))
    assert locked.placement == places
    assert both.starting_from(TokenState(locked.text, locked.image)).placement == places
    save_tokens(tmp_path / "tokens.safetensors", locked, model)
    assert load_tokens(tmp_path / "tokens.safetensors", model).placement == places


def test_the_canvas_grows_in_the_original(model):
    prompt, unit = prompt_of(model), model.downsample
    wider = extended(prompt, left=1, top=0, right=2, bottom=1)
    (before,), (after,) = prompt.placement, wider.placement
    assert after.size == (before.size[0] + 3 * unit, before.size[1] + unit)
    assert after.margins == (unit, 0, 2 * unit, unit)
    assert after.to_original(unit, 0) == pytest.approx(before.to_original(0, 0))
    again = extended(wider, left=0, top=1, right=0, bottom=0)
    assert again.placement[0].margins == (unit, unit, 2 * unit, unit)
    few = SamplerSettings(seed=0, text_steps=1, image_steps=1)
    tokens = denoise(model, again, few).final
    assert tokens.placement == again.placement
    assert prompt.starting_from(tokens).placement == again.placement  # another canvas, its own


def test_a_state_has_one_placement_for_each_sample():
    with pytest.raises(ValueError, match="placements for 2"):
        TokenState(
            torch.zeros(2, 1, dtype=torch.int64),
            torch.zeros(2, 1, 1, dtype=torch.int64),
            (Placement.whole((3, 4)),),
        )


def test_a_file_with_a_broken_placement_is_refused_and_one_without_is_read(model, tmp_path):
    final, path = prompt_of(model).initial, tmp_path / "tokens.safetensors"
    save_tokens(path, final, model)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    for broken in ("[", "5", "[5]", '[{"box": [0, 0, 1, 1]}]', "[]", '[{"original": [1]}]'):
        save_file(tensors, path, metadata={**header, "placement": broken})
        with pytest.raises(InputError, match="cannot be read"):
            load_tokens(path, model)
    del header["placement"]
    save_file(tensors, path, metadata=header)
    assert load_tokens(path, model).placement is None

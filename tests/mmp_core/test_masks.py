"""Masks as people paint them: which image tokens they select, and the region around them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core import MASKED, InputError, encode_instruction, load_checkpoint
from mmada_parallel.mmp_core.fitting import in_turn
from mmada_parallel.mmp_core.image.mask_settings import MaskSettings
from mmada_parallel.mmp_core.image.masks import (
    bounds_of,
    cells_of,
    covered,
    is_painted,
    largest_near,
    mask_values,
    regions_around,
)
from mmada_parallel.mmp_core.pipeline import encode_image, seen_size
from mmada_parallel.mmp_core.variants.registry import VARIANTS
from mmada_parallel.tests.mmp_core import tiny
from PIL import Image, ImageDraw

SIDE, UNIT = 512, 16


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo")


PHOTO = (4000, 3000)


def stroke(size, *points, width):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).line(points, fill=255, width=width)
    return mask


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.id)
@pytest.mark.parametrize("width", [3, 8, 40])
def test_a_stroke_on_a_large_photo_selects_exactly_the_codes_that_it_touches(variant, width):
    mask = stroke(PHOTO, (700, 800), (1900, 1300), (2600, 900), width=width)
    seen = variant.input_size(PHOTO, SIDE, UNIT)
    placement = variant.placement(PHOTO, seen)
    grid = seen[1] // UNIT, seen[0] // UNIT
    cells = cells_of(mask_values(mask), grid, box=placement.box)[0]

    def touched(margin):
        """The codes under the stroke's pixels, less a margin on every side of each."""
        under = torch.zeros(grid, dtype=torch.bool)
        y, x = np.nonzero(np.asarray(mask))
        for across, down in itertools.product((margin, 1 - margin), repeat=2):
            column, row = placement.to_model(x + across, y + down)
            under[row.astype(int) // UNIT, column.astype(int) // UNIT] = True
        return under

    assert touched(0.4).sum() > 10
    assert (cells | ~touched(0.4)).all() and (touched(1e-9) | ~cells).all()


@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_shares_are_exact_areas(size, grid, seed):
    """Against the mask enlarged so that pixels and cells are made of whole smaller pixels."""
    mask = (torch.rand(1, *size, generator=torch.Generator().manual_seed(seed)) > 0.5).float()
    large = mask.repeat_interleave(grid[0], 1).repeat_interleave(grid[1], 2)
    parts = large.view(1, grid[0], size[0], grid[1], size[1])
    assert torch.allclose(covered(mask, grid), parts.mean(dim=(2, 4)), atol=1e-6)
    outer = (-size[1], -size[0], size[1], size[0])
    wider = covered(mask, (2 * grid[0], 2 * grid[1]), outer)
    assert torch.allclose(wider[:, grid[0] :, grid[1] :], covered(mask, grid), atol=1e-6)
    assert max(wider[:, : grid[0]].max(), wider[:, :, : grid[1]].max()) < 1e-6


def test_a_mask_on_the_boundary_of_codes_selects_no_neighbour():
    for size in ((128, 128), (4000, 4000), (100, 100)):
        mask = torch.zeros(1, *size)
        mask[:, size[0] // 4 : size[0] // 2, size[1] // 2 :] = 1
        expected = torch.zeros(1, 4, 4, dtype=torch.bool)
        expected[:, 1, 2:] = True
        assert torch.equal(cells_of(mask, (4, 4)), expected)


def test_what_is_hardly_there_is_not_painted():
    faint = torch.full((1, 8, 8), 12 / 255)
    assert not is_painted(faint) and not cells_of(faint, (2, 2)).any()
    assert is_painted(faint + 0.1) and cells_of(faint + 0.1, (2, 2)).all()


def left_half(white, dtype=np.uint8, channels=()):
    """A mask of 6x4 pixels, painted at the left."""
    levels = np.zeros((4, 6, *channels), dtype)
    levels[:, :3] = white
    return levels


def picture(*levels):
    return Image.fromarray(left_half(*levels))


MASKS = {
    "grey": picture(255),
    "one bit": picture(255).convert("1"),
    "colours": picture(255, np.uint8, (3,)),
    "white on nothing": picture(255, np.uint8, (4,)),
    "grey on nothing": picture(255, np.uint8, (2,)),
    "palette": picture(255).convert("P"),
    "16 bit": picture(65535, np.uint16),
    "32 bit": picture(65535, np.int32),
    "floats": picture(1, np.float32),
    "floats up to 255": picture(255, np.float32),
    "array": left_half(255),
    "array of bits": left_half(True, bool),
    "array of floats": left_half(1, np.float32),
    "tensor": torch.from_numpy(left_half(1, np.float32))[None],
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_any_kind_is_white_where_painted(name, demo):
    expected = torch.zeros(1, 4, 6)
    expected[:, :, :3] = 1
    assert torch.equal(mask_values(MASKS[name]), expected)
    prompt = encode_instruction(demo, "x", Image.new("RGB", (128, 128)), mask=MASKS[name])
    masked = prompt.initial.image[0] == MASKED
    assert masked[:, :2].all() and not masked[:, 2:].any()


def test_a_mask_is_read_from_a_file_and_deep_greys_keep_their_shares(tmp_path, demo):
    for name in ("grey", "white on nothing", "16 bit"):
        MASKS[name].save(file := tmp_path / f"{name}.png")
        assert torch.equal(mask_values(file), mask_values(MASKS[name]))
    faint = picture(300, np.uint16)
    assert not is_painted(mask_values(faint))
    with pytest.raises(InputError, match="no such file"):
        encode_instruction(demo, "x", Image.new("RGB", (128, 128)), mask=tmp_path / "gone.png")


def test_grow_adds_codes_on_every_side():
    mask = torch.zeros(1, 70, 70)
    mask[:, 35, 35] = 1
    expected = torch.zeros(1, 7, 7, dtype=torch.bool)
    expected[:, 2:5, 2:5] = True
    assert torch.equal(cells_of(mask, (7, 7), grow=1), expected)
    assert cells_of(mask, (7, 7), grow=3).all()
    for options in ({"grow": -1}, {"grow": 10**9}, {"grow": None}, {"coverage": float("nan")}):
        with pytest.raises(InputError):
            cells_of(mask, (7, 7), **options)


boxes = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))


@given(
    variant=st.sampled_from(VARIANTS),
    size=st.tuples(st.integers(30, 6000), st.integers(30, 6000)),
    shares=st.lists(boxes, min_size=1, max_size=3),
    context=st.sampled_from((0.0, 0.5, 2.0)),
)
@example(VARIANTS[0], (304, 1361), [(0.0, 0.0, 0.984375, 0.375)], 0.0)
@settings(max_examples=200, deadline=None)
def test_a_region_holds_its_mask_and_is_not_enlarged(variant, size, shares, context):
    bounds = []
    for x0, y0, x1, y1 in shares:
        left, right = sorted((int(x0 * (size[0] - 1)), int(x1 * (size[0] - 1))))
        top, bottom = sorted((int(y0 * (size[1] - 1)), int(y1 * (size[1] - 1))))
        bounds.append((left, top, right + 1, bottom + 1))

    def seen(part):
        return variant.input_size(part, SIDE, UNIT)

    regions = regions_around(bounds, size, context, seen)
    assert len({(r - x, b - y) for x, y, r, b in regions}) == 1
    for (left, top, right, bottom), box in zip(regions, bounds, strict=True):
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        assert left <= box[0] and top <= box[1] and right >= box[2] and bottom >= box[3]
    width, height = regions[0][2] - regions[0][0], regions[0][3] - regions[0][1]
    shape = seen((width, height))
    shares = (side / min(pair) for side, *pair in zip((width, height), size, shape, strict=True))
    assert max(shares) > 0.95
    if width < size[0] and height < size[1]:  # the picture is large enough for the shape
        # within a step of the sizes that the model takes
        assert width / height == pytest.approx(shape[0] / shape[1], rel=0.03)


def test_bounds_are_those_of_the_paint_in_pixels_of_the_picture():
    mask = torch.zeros(50, 100)
    mask[10:20, 30:40] = 1
    mask[0, 0] = 0.01
    assert bounds_of(mask, (100, 50)) == (30, 10, 40, 20)
    assert bounds_of(mask, (400, 200)) == (120, 40, 160, 80)
    assert bounds_of(mask, (33, 17)) == (9, 3, 14, 7)


@pytest.fixture(scope="module", params=["A", "M", "demo"])
def model(request, tmp_path_factory):
    if request.param == "demo":
        return load_checkpoint("demo")
    return load_checkpoint(tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"), request.param))


def test_the_model_gets_the_region_and_the_mask_lies_on_it(model):
    side = model.default_image_size
    size = (7 * side, 5 * side)
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    middle = 4 * side, 3 * side
    mask = stroke(size, (middle[0] - side // 8, middle[1]), middle, width=2)
    bounds = [bounds_of(mask_values(mask)[0], size)]
    (region,) = regions_around(bounds, size, 0.5, lambda part: seen_size(model, part))
    prompt = encode_instruction(model, "x", picture, mask=mask, region=region)
    assert torch.equal(prompt.image, encode_image(model, picture.crop(region)))
    (placement,) = prompt.placement
    assert placement.original == size and placement.scale == (1, 1)
    assert (region[2] - region[0], region[3] - region[1]) == placement.size
    across, down = placement.to_model(*middle)
    unit = model.downsample
    masked = prompt.initial.image[0] == MASKED
    assert masked[int(down // unit), int(across // unit)] and masked.sum() <= 4
    whole = encode_instruction(model, "x", picture, mask=mask)
    assert (whole.initial.image == MASKED).any() and whole.placement[0].scale[0] > 4


def test_regions_beyond_the_picture_and_settings_out_of_range_are_refused(model):
    picture = Image.new("RGB", (200, 100))
    for region in ((-1, 0, 50, 50), (0, 0, 201, 50), (50, 0, 50, 50)):
        with pytest.raises(InputError, match="region"):
            encode_instruction(model, "x", picture, region=region)
    with pytest.raises(InputError, match="coverage is 1"):
        MaskSettings(coverage=1.0)
    with pytest.raises(InputError, match="region is 'all'"):
        MaskSettings(region="all")


def test_growing_takes_rows_and_columns_and_not_the_area_of_its_window(monkeypatch):
    """129x129 values for each of 512x512 image tokens would be one call of seconds."""
    windows, pool = [], torch.nn.functional.max_pool2d

    def recorded(maps, window, *more):
        windows.append(torch.Size((window, window) if isinstance(window, int) else window).numel())
        return pool(maps, window, *more)

    monkeypatch.setattr(torch.nn.functional, "max_pool2d", recorded)
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 100, 100] = 1
    assert cells_of(mask, (64, 64), grow=20).any() and max(windows) == 41


def test_pixels_are_read_for_the_rows_of_image_tokens_that_are_near(monkeypatch):
    """All 16,384 rows of a mask for each of 512 rows of image tokens took seconds."""
    read, where = [], torch.where

    def recorded(chosen, *values):
        read.append(chosen.shape[-2])
        return where(chosen, *values)

    monkeypatch.setattr(torch, "where", recorded)
    cells_of(torch.rand(1, 2000, 10), (64, 1))
    assert sum(read) < 1.01 * 2000 and max(read) < 0.3 * 2000


def test_the_largest_near_is_that_of_a_square_window():
    maps = torch.rand(2, 20, 30, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.max_pool2d(maps[:, None], 7, 1, 3)[:, 0]
    assert torch.equal(largest_near(maps, 3), wanted)


def test_masks_as_many_as_the_results_are_not_copied():
    """64 masks of 4096x4096 pixels took 4 s to copy, in one call."""
    masks = torch.rand(3, 4, 4)
    found, notes = in_turn(masks, 3, "mask", "result")
    assert found.data_ptr() == masks.data_ptr() and not notes
    assert torch.equal(in_turn(masks[:2], 3, "mask", "result")[0], masks[[0, 1, 0]])

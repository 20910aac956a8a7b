"""An edit comes back on its original: what was not edited stays, bit for bit."""

import numpy as np
import pytest
import torch
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.render import render
from mmada_parallel.demo.scenes import CONTENTS
from mmada_parallel.demo.tokenizer import CODES
from mmada_parallel.mmp_core import (
    MASKED,
    InputError,
    Prompt,
    TokenState,
    decode_image,
    encode_instruction,
    load_checkpoint,
    put_back,
)
from mmada_parallel.mmp_core.compositing import put_back_pixels
from mmada_parallel.mmp_core.editing import extended
from mmada_parallel.mmp_core.image import blending
from mmada_parallel.mmp_core.image.changes import (
    affine_change,
    changed_area,
    dilated,
    feathered,
    new_structure,
    smoothed,
)
from mmada_parallel.mmp_core.image.put_back_settings import PutBackSettings
from mmada_parallel.mmp_core.variants.registry import VARIANTS
from mmada_parallel.tests.mmp_core.test_placement import noise
from PIL import Image

SIDE = 32
"""Pixels of one cell of the toy world, which is one image token."""


@pytest.fixture(scope="module")
def model():
    return load_checkpoint("demo", dtype=torch.float32)


@pytest.fixture(params=VARIANTS[:2], ids=lambda variant: variant.id)
def any_model(request, model, monkeypatch):
    """The demo as if it were of each family: cropped, or squashed."""
    monkeypatch.setattr(model, "variant", request.param)
    return model


def scene(seed=HELD_OUT, scale=4, size=None):
    """A task of the toy world, and its picture, enlarged and with fine grain."""
    task = world.task(seed, kinds=("recolour",))
    picture = render(task.source)
    size = size or (picture.width * scale, picture.height * scale)
    enlarged = np.asarray(picture.resize(size, Image.Resampling.LANCZOS), np.int16)
    grain = np.random.default_rng(seed).integers(-3, 4, enlarged.shape)
    return task, Image.fromarray((enlarged + grain).clip(0, 255).astype(np.uint8))


def edited(prompt, cells):
    """The input's tokens with those of ``cells`` exchanged for others, as a result."""
    codes = prompt.image.clone()
    for row, column in cells:
        codes[:, row, column] = (codes[:, row, column] + 7) % 40
    return TokenState(torch.zeros(prompt.batch, 1, dtype=torch.int64), codes, prompt.placement)


def arrays(*pictures):
    return [np.asarray(picture) for picture in pictures]


def assert_untouched(picture, original, mask):
    new, old, used = arrays(picture, original, mask)
    assert new.dtype == old.dtype and new.shape == old.shape and used.shape == old.shape[:2]
    assert (new[used == 0] == old[used == 0]).all()


@pytest.mark.parametrize("size", [(700, 401), (401, 701), (100, 90)])
@pytest.mark.parametrize("mode", ["changed", "all"])
def test_what_was_not_edited_is_the_originals(any_model, size, mode):
    _, picture = scene(size=size)
    prompt = encode_instruction(any_model, "make the circle red", picture)
    result = edited(prompt, [(1, 1)])
    again, mask = put_back(any_model, prompt, picture, result, mode=mode)
    assert again.size == mask.size == picture.size and mask.mode == "L"
    assert_untouched(again, picture, mask)
    used = np.asarray(mask)
    if mode == "all":
        x, y = (n / 2 for n in size)
        assert used[int(y), int(x)] == 255
        return
    placement = prompt.placement[0]
    unit = any_model.downsample
    x, y = placement.to_original(1.5 * unit, 1.5 * unit)
    assert used[int(y), int(x)] == 255
    far = placement.to_original(3.5 * unit, 1.5 * unit)
    if far[0] < size[0] - 1:
        assert used[int(far[1]), int(far[0])] == 0
    assert 0.01 < (used > 0).mean() < 0.5


def test_the_same_tokens_change_nothing(any_model):
    _, picture = scene(size=(600, 444))
    prompt = encode_instruction(any_model, "make the circle red", picture)
    for result in (edited(prompt, []), decode_image(any_model, edited(prompt, []))[0]):
        again, mask = put_back(any_model, prompt, picture, result)
        assert not np.asarray(mask).any() and again.tobytes() == picture.tobytes()


def test_tokens_and_their_picture_give_the_same(model):
    _, picture = scene()
    prompt = encode_instruction(model, "make the circle red", picture)
    result = edited(prompt, [(2, 2)])
    one, mask = put_back(model, prompt, picture, result)
    two, other = put_back(model, prompt, picture, decode_image(model, result)[0])
    # the picture has 8 bits
    assert abs(np.asarray(one, np.int16) - np.asarray(two, np.int16)).max() <= 3
    assert (np.abs(np.asarray(mask, np.int16) - np.asarray(other)) > 40).mean() < 0.002


def test_an_edit_lands_where_it_was_made(any_model):
    """A cell's colour is that of the result, and its neighbour's that of the original."""
    _, picture = scene(size=(640, 640))
    prompt = encode_instruction(any_model, "make the circle red", picture)
    result = edited(prompt, [(1, 2)])
    wanted = np.asarray(decode_image(any_model, result)[0], np.float32)
    for fill in ("replace", "auto", "difference"):
        again, _ = put_back(any_model, prompt, picture, result, settings=PutBackSettings(fill=fill))
        shrunk = np.asarray(any_model.variant.fit(again, prompt.placement[0].size), np.float32)
        cell = slice(SIDE + 6, 2 * SIDE - 6), slice(2 * SIDE + 6, 3 * SIDE - 6)
        assert np.abs(shrunk[cell] - wanted[cell]).mean() < 12, fill


def test_difference_keeps_fine_texture_and_replace_does_not(model):
    _, picture = scene(scale=7)
    prompt = encode_instruction(model, "make the circle red", picture)
    other = (prompt.image + len(CONTENTS)) % CODES  # the same things before another background
    result = TokenState(torch.zeros(1, 1, dtype=torch.int64), other)
    before = np.asarray(picture, np.float32)
    detail = before - np.asarray(picture.resize((128, 128)).resize(picture.size), np.float32)
    likeness = {}
    for fill in ("difference", "replace"):
        again, _ = put_back(
            model, prompt, picture, result, mode="all", settings=PutBackSettings(fill=fill)
        )
        new = np.asarray(again, np.float32)
        fine = new - np.asarray(again.resize((128, 128)).resize(again.size), np.float32)
        likeness[fill] = np.corrcoef(fine.ravel(), detail.ravel())[0, 1]
    assert likeness["difference"] > likeness["replace"] + 0.2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16", "CMYK", "1"])
def test_any_kind_of_picture(model, mode):
    _, picture = scene()
    if mode == "I;16":
        levels = np.asarray(picture.convert("L"), np.uint16) * 257 + 3
        original = Image.fromarray(levels)
    else:
        original = picture.convert(mode)
    if mode in ("RGBA", "LA"):
        original.putalpha(Image.linear_gradient("L").resize(original.size))
    prompt = encode_instruction(model, "make the circle red", original)
    again, mask = put_back(model, prompt, original, edited(prompt, [(1, 1)]))
    kept = {"RGBA": "RGBA", "LA": "RGBA", "I;16": "I;16"}.get(mode, "RGB")
    assert again.mode == kept
    assert_untouched(again, original if kept == "I;16" else original.convert(kept), mask)
    if kept == "RGBA":
        assert again.getchannel("A").tobytes() == original.getchannel("A").tobytes()
    assert 0 < np.asarray(mask).mean() < 200


def test_the_profile_goes_along_and_orientation_is_applied_once(model, tmp_path):
    _, picture = scene(size=(640, 512))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = b"\0" * 16 + b"RGB " + b"\0" * 108
    turned.save(tmp_path / "turned.png", exif=exif, icc_profile=profile)
    prompt = encode_instruction(model, "make the circle red", tmp_path / "turned.png")
    assert prompt.placement[0].original == (640, 512)
    again, mask = put_back(model, prompt, tmp_path / "turned.png", edited(prompt, [(1, 1)]))
    assert again.info == {"icc_profile": profile}
    assert_untouched(again, picture, mask)


def test_a_mask_says_where(any_model):
    _, picture = scene(size=(700, 560))
    prompt = encode_instruction(any_model, "make the circle red", picture)
    result = edited(prompt, [(r, c) for r in range(3) for c in range(3)])
    mask = Image.new("L", (350, 280))
    mask.paste(255, (100, 80, 200, 160))
    again, used = put_back(any_model, prompt, picture, result, mask=mask, mode="mask")
    assert_untouched(again, picture, used)
    levels = np.asarray(used)
    assert (levels[170:310, 210:390] == 255).all()
    edge = 10 * max(prompt.placement[0].scale)
    outside = np.ones_like(levels, bool)
    outside[int(160 - edge) : int(320 + edge), int(200 - edge) : int(400 + edge)] = False
    assert not levels[outside].any()
    hard, used = put_back(
        any_model,
        prompt,
        picture,
        result,
        mask=mask.resize(picture.size, Image.Resampling.NEAREST),
        mode="mask",
        settings=PutBackSettings(feather=0),
    )
    assert_untouched(hard, picture, used)
    _, within = put_back(any_model, prompt, picture, result, mask=mask)
    assert 0 < (np.asarray(within) > 0).mean() <= (levels > 0).mean() * 1.3


def test_the_mode_is_that_of_the_settings_unless_one_is_given(model):
    _, picture = scene()
    prompt = encode_instruction(model, "make the circle red", picture)
    result, everything = edited(prompt, [(1, 1)]), PutBackSettings(mode="all")

    def used(**choices):
        return put_back(model, prompt, picture, result, **choices)[1].tobytes()

    assert used(settings=everything) == used(mode="all") != used() == used(mode="changed")
    assert used(settings=everything, mode="changed") == used()


def test_an_unpainted_mask_is_none(model):
    _, picture = scene()
    prompt = encode_instruction(model, "make the circle red", picture)
    result, blank = edited(prompt, [(1, 1)]), Image.new("L", (5, 5))
    one, two = (put_back(model, prompt, picture, result, mask=m) for m in (None, blank))
    assert one[0].tobytes() == two[0].tobytes() and one[1].tobytes() == two[1].tobytes()
    with pytest.raises(InputError, match="Mode mask needs a mask"):
        put_back(model, prompt, picture, result, mask=blank, mode="mask")


def test_mode_mask_without_a_mask_takes_the_prompts(model):
    _, picture = scene()
    painted = Image.new("L", picture.size)
    painted.paste(255, (140, 140, 240, 240))
    prompt = encode_instruction(model, "make the circle red", picture, mask=painted)
    again, used = put_back(model, prompt, picture, edited(prompt, [(0, 0), (1, 1)]), mode="mask")
    assert_untouched(again, picture, used)
    levels = np.asarray(used)
    assert (levels[134:250, 134:250] == 255).all() and not levels[:100, :100].any()


def test_an_extended_canvas_keeps_the_original_and_its_scale(any_model):
    _, picture = scene(size=(704, 512))
    prompt = encode_instruction(any_model, "make the circle red", picture)
    wider = extended(prompt, left=1, top=0, right=2, bottom=1)
    codes = wider.initial.image
    result = TokenState(torch.zeros(1, 1, dtype=torch.int64), codes.masked_fill(codes == MASKED, 5))
    again, mask = put_back(any_model, wider, picture, result)
    placement, unit = wider.placement[0], any_model.downsample
    left = max(0, round(-placement.box[0]))
    across, down = placement.scale
    assert again.width == pytest.approx(704 + 3 * unit * across, abs=0.6 * unit * across)
    assert again.height == pytest.approx(512 + unit * down, abs=0.6 * unit * down)
    new, old, used = arrays(again, picture, mask)
    inside = new[:512, left : left + 704]
    assert (inside == old)[used[:512, left : left + 704] == 0].all()
    assert (used[:512, left : left + 704] == 0).mean() > 0.9
    assert (used[:, :left] == 255).all() and (used[512:] == 255).all()
    x, y = placement.to_model(left // 2 - left + 0.5, 100.5)
    colour = np.asarray(decode_image(any_model, result)[0])[int(y), int(x)]
    assert np.abs(new[100, left // 2].astype(int) - colour).max() < 40


def test_a_larger_original_of_the_same_picture_will_do(model):
    _, picture = scene()
    prompt = encode_instruction(model, "make the circle red", picture)
    larger = picture.resize((1500, 1500))
    again, mask = put_back(model, prompt, larger, edited(prompt, [(1, 1)]))
    assert again.size == (1500, 1500)
    assert_untouched(again, larger, mask)
    with pytest.raises(InputError, match="the picture that the prompt was made from 512x512"):
        put_back(model, prompt, picture.resize((512, 300)), edited(prompt, []))


def test_what_is_still_masked_shows_the_original(model):
    _, picture = scene()
    prompt = encode_instruction(model, "make the circle red", picture)
    codes = edited(prompt, [(1, 1)]).image
    codes[0, 3, 3] = MASKED
    again, mask = put_back(
        model, prompt, picture, TokenState(torch.zeros(1, 1, dtype=torch.int64), codes)
    )
    assert_untouched(again, picture, mask)
    assert not np.asarray(mask)[400:, 400:].any() and np.asarray(mask)[190, 190] == 255


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.uint8])
def test_pixels_of_any_depth(model, dtype):
    _, picture = scene()
    prompt = encode_instruction(model, "make the circle red", picture)
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    levels = (np.random.default_rng(0).random((512, 512, 3)) * white).astype(dtype)
    again, used = put_back_pixels(model, prompt, levels, edited(prompt, [(1, 1)]))
    assert again.dtype == dtype and (again[used == 0] == levels[used == 0]).all()
    assert (again[used == 255] != levels[used == 255]).any()


def test_strips_that_are_left_are_not_begun_after_an_interruption(model, monkeypatch):
    task, original = scene(scale=16)
    prompt = encode_instruction(model, task.instruction, original)
    begun, blend = [], blending._mixed
    monkeypatch.setattr(blending, "_mixed", lambda *a: [begun.append(1), blend(*a)][1])

    def interrupt(done, total):
        assert total > 10
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_back_pixels(
            *(model, prompt, np.asarray(original), edited(prompt, [(1, 1)])),
            mode="all",
            callback=interrupt,
        )
    assert 1 <= len(begun) <= 1 + 2 * torch.get_num_threads()


def test_bad_input_is_one_sentence(model):
    _, picture = scene()
    prompt = encode_instruction(model, "make the circle red", picture)
    result = edited(prompt, [])
    nothing = encode_instruction(model, "make the circle red")
    cases = [
        (lambda: put_back(model, nothing, picture, result), "made without a picture"),
        (lambda: put_back(model, prompt, picture, result.repeat(2)), "one at a time"),
        (lambda: put_back(model, prompt, picture, "absent.png"), "no such file"),
        (lambda: put_back(model, prompt, "absent.png", result), "no such file"),
        (lambda: put_back(model, prompt, picture, result, mode="some"), "mode is 'some'"),
        (lambda: PutBackSettings(feather=-1), "feather is -1"),
        (
            lambda: put_back(
                model,
                prompt,
                picture,
                TokenState(result.text, result.image[:, :2], None),
            ),
            "use the prompt that the tokens were made with",
        ),
    ]
    other = encode_instruction(model, "make the circle red", scene(HELD_OUT + 1)[1])
    both = Prompt.stack([prompt, other])
    cases.append((lambda: put_back(model, both, picture, picture), "one at a time"))
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
    same = prompt.repeat(3)
    put_back(model, same, picture, decode_image(model, result)[0])


@pytest.mark.parametrize("pixels", [1, 2, 5, 8])
def test_areas_grow_and_fade_by_what_is_said(pixels):
    area = torch.zeros(50, 41)
    area[25, 20] = 1
    grown = dilated(area, pixels)
    rows, columns = torch.nonzero(grown, as_tuple=True)
    assert (rows - 25).abs().max() == (columns - 20).abs().max() == pixels
    soft = feathered(grown, pixels)
    assert (soft[grown == 1] == 1).all()
    rows, columns = torch.nonzero(soft, as_tuple=True)
    assert (rows - 25).abs().max() == (columns - 20).abs().max() == 2 * pixels
    line = soft[25, 20 + pixels :]
    assert (line[1:] <= line[:-1]).all() and 0 < line[1] < 1


def test_smoothing_keeps_the_mean_and_wide_and_narrow_agree():
    field = torch.rand(1, 64, 64)
    assert smoothed(torch.ones(3, 40, 30), 9.0) == pytest.approx(torch.ones(3, 40, 30), abs=1e-4)
    wide = smoothed(smoothed(field, 2.9), 2.9)
    assert (smoothed(field, 2.9 * 2**0.5) - wide).abs().mean() < 0.02


def test_noise_is_no_change_and_a_changed_block_is():
    torch.manual_seed(0)
    before = torch.from_numpy(np.asarray(noise((96, 96)), np.float32)).permute(2, 0, 1) / 255
    after = (before + 0.03 * torch.randn_like(before)).clamp(0, 1)
    assert not changed_area(before, after, 0.2, 16).any()
    after[:, 32:64, 16:64] = 1 - after[:, 32:64, 16:64]
    area = changed_area(before, after, 0.2, 16)
    truth = torch.zeros(96, 96)
    truth[32:64, 16:64] = 1
    assert (area * truth).sum() / truth.sum() > 0.85
    assert (area * truth).sum() / area.sum() > 0.9
    assert (dilated(area, 4) * truth).sum() / truth.sum() > 0.97


def test_a_change_of_colours_is_followed_through_all_channels():
    """Each new colour made of the old brightness: what a regression channel by channel misses."""
    torch.manual_seed(0)
    seen = smoothed(torch.rand(3, 64, 64), 1.0)
    before = (seen + 0.02 * torch.randn_like(seen)).clamp(0, 1)
    mixed = torch.tensor([[0.3, 0.5, 0.2], [0.1, 0.2, 0.1], [0.4, 0.6, 0.3]])
    after = torch.einsum("ij,jhw->ihw", mixed, before) + 0.1
    gain, shift = affine_change(seen, before, after, torch.ones(64, 64), 8)
    made = torch.einsum("ijhw,jhw->ihw", gain, seen) + shift
    wanted = torch.einsum("ij,jhw->ihw", mixed, seen) + 0.1
    assert (made - wanted).abs().mean() < 0.01
    assert (gain[:, :, 32, 32] - mixed).abs().max() < 0.15


@pytest.mark.parametrize("times", [2, 4])
def test_a_result_that_was_enlarged_keeps_its_detail(any_model, times):
    """As after an upscaler: fine texture in the result is there in the original's pixels."""
    _, picture = scene(size=(700, 520))
    prompt = encode_instruction(any_model, "make the circle red", picture)
    placement = prompt.placement[0]
    size = [times * side for side in placement.size]
    stripes = np.zeros((size[1], size[0], 3), np.uint8)
    stripes[::2] = 255
    small = Image.fromarray(stripes).resize(placement.size, Image.Resampling.BOX)
    contrast = {}
    for name, result in (("large", Image.fromarray(stripes)), ("small", small)):
        again, mask = put_back(any_model, prompt, picture, result, mode="all")
        assert_untouched(again, picture, mask)
        contrast[name] = np.asarray(again.convert("L"), np.float32)[200:320, 200:400].std(0).mean()
    assert contrast["large"] > 3 * contrast["small"] + 20


@pytest.mark.parametrize("shape", [(1, 512, 512, 3), (512, 512, 3), (512, 512), (1, 512, 512, 1)])
@pytest.mark.parametrize("kind", ["uint8", "float32", "tensor"])
def test_pixels_come_back_as_they_came(model, shape, kind):
    """Arrays, and ComfyUI's IMAGE and MASK: (1, H, W, C) and (1, H, W) of floats in 0 … 1."""
    _, picture = scene()
    levels = np.asarray(picture if 3 in shape else picture.convert("L")).reshape(shape)
    original = levels if kind == "uint8" else (levels / 255).astype(np.float32)
    original = torch.from_numpy(original) if kind == "tensor" else original
    prompt = encode_instruction(model, "make the circle red", original)
    tokens = edited(prompt, [(1, 1)])
    result = torch.from_numpy(np.array(decode_image(model, tokens)[0]))[None] / 255
    for one in (tokens, result):
        again, mask = put_back(model, prompt, original, one)
        assert type(again) is type(mask) is type(original)
        assert again.shape == original.shape and again.dtype == original.dtype
        assert mask.shape == shape[: 2 + (shape[0] == 1)]
        assert (again[mask == 0] == original[mask == 0]).all() and 0 < (mask > 0).sum()
        assert mask.max() == (1 if kind == "tensor" else 255)
    painted = np.zeros((64, 64), np.uint8)
    painted[8:20, 8:20] = 255
    used = put_back(model, prompt, picture, tokens, mask=painted, mode="mask")[1]
    for mask in (torch.from_numpy(painted)[None] / 255, painted > 0):
        assert put_back(model, prompt, picture, tokens, mask=mask, mode="mask")[1] == used


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.zeros((2, 64, 64, 3), np.float32), "expected one picture"),
        (np.zeros((3, 64, 64), np.float32), "expected one picture"),
        (np.zeros((0, 64, 3), np.uint8), "expected one picture"),
        (np.zeros((64, 64, 3), np.int64), "Pixels are int64"),
        (np.full((64, 64, 3), 200.0), "in 0 … 1"),
        (torch.zeros(()), "expected one picture"),
    ],
)
def test_other_pixels_are_refused_in_one_sentence(model, pixels, message):
    _, picture = scene()
    prompt = encode_instruction(model, "make the circle red", picture)
    for call in (
        lambda: put_back(model, prompt, pixels, edited(prompt, [])),
        lambda: put_back(model, prompt, picture, pixels),
        lambda: encode_instruction(model, "make the circle red", pixels),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_growing_and_feathering_can_be_stopped_between_their_passes():
    told, area = [], torch.zeros(40, 40)
    area[20, 20] = 1
    dilated(area, 16, lambda: told.append(1))
    assert len(told) == 16
    feathered(area, 16, lambda: told.append(1))
    assert len(told) == 24
    seen, before, after = torch.rand(3, 3, 40, 40)
    changed_area(before, after, 0.1, 16, lambda: told.append(1))
    assert len(told) > 50
    del told[:]
    affine_change(seen, before, after, area, 16, lambda: told.append(1))
    new_structure(seen, before, after, area, 16, lambda: told.append(1))
    assert len(told) > 10


def test_a_soft_edge_is_the_mean_of_a_square_window():
    area = (torch.rand(60, 60, generator=torch.Generator().manual_seed(0)) > 0.9).float()
    wide = torch.nn.functional.pad(dilated(area, 5)[None, None], (5,) * 4, mode="replicate")
    wanted = torch.maximum(torch.nn.functional.avg_pool2d(wide, 11, 1)[0, 0], area)
    assert torch.allclose(feathered(area, 10), wanted, atol=1e-6)

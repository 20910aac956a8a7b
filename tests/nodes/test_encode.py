"""Encode Instruction takes sizes, masks and pictures as they come, and says what it did."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmada_parallel.demo.photo import on_a_wall, on_paper
from mmada_parallel.demo.render import render
from mmada_parallel.demo.world import task
from mmada_parallel.mmp_core import MASKED, InputError
from mmada_parallel.mmp_core.pipeline import seen_size
from PIL import Image

AROUND = {"region": "mask", "context": 0.5}


@pytest.fixture(scope="module")
def encode(run_node, model):
    def node(image=None, width=0, height=0, mask=None, **choices):
        output = run_node(
            "EncodeInstruction",
            model=model,
            image=image,
            mask=mask,
            width=width,
            height=height,
            instruction="remove the red star",
            text_length=0,
            **choices,
        )
        ui = output.ui or {}
        return output[0], "".join(ui.get("text", ())), ui.get("images", [])

    return node


def painted(height, width, top, left, bottom, right):
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1
    return mask


@given(width=st.integers(0, 300), height=st.integers(0, 300), picture=st.booleans())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_size_becomes_the_nearest_of_whole_tokens(encode, model, width, height, picture):
    unit = model.model.downsample
    prompt, text, _ = encode(torch.rand(1, 60, 90, 3) if picture else None, width, height)
    sides = [cells * unit for cells in reversed(prompt.initial.grid)]
    for side, asked in zip(sides, (width, height), strict=True):
        assert not asked or abs(side - asked) <= unit / 2 or side == unit
    exact = (width, height) in ((0, 0), tuple(sides))
    assert ("pixels, the nearest to" in text) != exact
    assert exact or f"{sides[0]}x{sides[1]}" in text


def test_automatic_leaves_the_size_to_picture_and_checkpoint(encode):
    prompt, text, _ = encode(None, 64, 96, size="automatic")
    assert prompt.initial.grid == (4, 4) and not text
    assert encode(None, 64, 96, size="own values")[0].initial.grid == (3, 2)


def test_one_side_follows_from_the_other(encode):
    prompt, text, _ = encode(torch.rand(1, 128, 128, 3), height=64)
    assert prompt.initial.grid == (2, 2) and "a height of 64" in text
    wide, _, _ = encode(torch.rand(1, 100, 400, 3), width=256)
    assert wide.initial.grid[1] == 8 and wide.initial.grid[0] < 4


def test_with_a_mask_the_result_has_the_pictures_size(encode):
    prompt, text, _ = encode(torch.rand(1, 128, 128, 3), 64, 64, painted(128, 128, 0, 0, 32, 32))
    assert prompt.initial.grid == (4, 4) and "width and height that were set are unused" in text


def test_a_mask_that_is_not_painted_is_no_mask(encode):
    prompt, text, images = encode(torch.rand(1, 128, 128, 3), mask=torch.zeros(1, 64, 64))
    assert (prompt.initial.image == MASKED).all() and not images
    assert text.endswith("The mask is not painted: the whole picture is drawn anew.")
    both = torch.cat([torch.zeros(1, 128, 128), painted(128, 128, 0, 0, 32, 32)])
    prompt, text, images = encode(torch.rand(2, 128, 128, 3), mask=both, **AROUND)
    assert (prompt.initial.image == MASKED).sum((1, 2)).tolist() == [16, 1] and len(images) == 2
    assert "Mask 1 is not painted" in text
    assert "not used, since there is no picture" in encode(mask=both)[1]


def test_masks_of_another_size_and_count_are_fitted(encode):
    pictures = torch.rand(3, 128, 128, 3)
    masks = torch.cat([painted(32, 64, 0, 0, 8, 16), painted(32, 64, 24, 48, 32, 64)])
    prompt, text, images = encode(pictures, mask=masks)
    masked = prompt.initial.image == MASKED
    assert masked[0, 0, 0] and masked[1, 3, 3] and masked[2, 0, 0] and masked.sum() == 3
    assert "2 masks for 3 pictures: they are used in turn." in text and len(images) == 3
    assert "of 64x32 pixels is stretched over the picture of 128x128" in text
    assert "1 of 16 image tokens are drawn anew" in text


def test_the_region_around_the_mask_and_what_is_shown_of_it(encode, host):
    import folder_paths

    picture = torch.rand(1, 600, 900, 3)
    prompt, text, images = encode(picture, mask=painted(600, 900, 300, 400, 310, 420), **AROUND)
    (placement,) = prompt.placement
    assert placement.original == (900, 600) and placement.scale == pytest.approx((1, 1), abs=0.1)
    assert placement.box[0] < 400 and placement.box[2] > 420
    assert 1 <= (prompt.initial.image == MASKED).sum() <= 4
    assert "of the picture's 900x600 pixels, around the mask" in text
    (file,) = images
    folder = folder_paths.get_temp_directory()
    shown = np.asarray(Image.open(f"{folder}/{file['filename']}"), float)
    red = (shown[..., 0] - shown[..., 1:].max(-1)) > 60
    left, top = placement.to_model(400, 300)
    rows, columns = np.nonzero(red)
    times = shown.shape[1] / placement.size[0]
    assert columns.mean() / times == pytest.approx(left + 10, abs=3)
    assert rows.mean() / times == pytest.approx(top + 5, abs=3)
    two = torch.cat([painted(600, 900, 10, 10, 30, 60), painted(600, 900, 500, 700, 590, 720)])
    prompt, _, _ = encode(picture.repeat(2, 1, 1, 1), mask=two, **AROUND)
    boxes = [place.box for place in prompt.placement]
    assert boxes[0][0] < 10 and boxes[1][3] > 590


def test_a_mask_that_the_crop_cuts_is_said_to_be_cut(encode):
    mask = painted(100, 800, 0, 100, 100, 500)  # the model sees 200 to 600
    _, text, _ = encode(torch.rand(1, 100, 800, 3), mask=mask)
    assert "25 % of the mask lies outside what the model sees of the picture" in text
    assert "beyond" not in encode(torch.rand(1, 100, 400, 3), mask=mask[:, :, 100:500])[1]


def test_what_is_sure_to_be_a_mistake_is_refused_when_queued(classes):
    encode = classes["MMaDAParallelEncodeInstruction"].validate_inputs
    assert "empty" in encode(instruction="  ") and encode(instruction=None) is encode("go") is True
    extend = classes["MMaDAParallelExtendCanvas"].validate_inputs
    assert "Nothing is added" in extend(0, 0, 0, 0) and extend(0, 0, None, 0) is extend(8) is True
    assert "range" in extend(left=-1)
    remask = classes["MMaDAParallelRemask"].validate_inputs
    assert "expected numbers" in remask(words="a-b") and "pattern" in remask(pattern="(")
    assert remask(words="2-4, 7", pattern="red|blue") is remask() is True


def test_the_canvas_is_extended_by_pixels_of_the_original(run_node, encoded, model):
    prompt = encoded(torch.rand(1, 512, 512, 3))
    sides = {"left": 0, "top": 0, "right": 130, "bottom": 0}
    output = run_node("ExtendCanvas", model=model, prompt=prompt, pixels_of="the original", **sides)
    (placement,) = output[0].placement
    assert output[0].initial.grid == (4, 6)
    assert placement.original == (512, 512) and placement.box == (0, 0, 768, 512)
    assert "256 on the right" in output.ui["text"][0]


@given(
    picture=st.tuples(st.integers(1, 3), st.integers(64, 400), st.integers(64, 400)),
    mask=st.tuples(st.integers(1, 4), st.integers(1, 200), st.integers(1, 200)),
    paint=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    region=st.sampled_from(("whole", "mask")),
)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_mask_fits_any_picture(encode, model, picture, mask, paint, region):
    """A dab somewhere in the first mask, nothing in the others."""
    (count, height, width), (masks, rows, columns) = picture, mask
    painted = torch.zeros(mask)
    top, left = int(paint[0] * (rows - 1)), int(paint[1] * (columns - 1))
    bottom = min(rows, top + 1 + int(paint[2] * rows))
    right = min(columns, left + 1 + int(paint[3] * columns))
    painted[0, top:bottom, left:right] = 1
    seen = model.model.variant.placement((width, height), seen_size(model.model, (width, height)))
    x, y = width / columns, height / rows
    parts = (left * x, right * x, seen.box[0::2]), (top * y, bottom * y, seen.box[1::2])
    unseen = any(end <= low + 1 or start >= high - 1 for start, end, (low, high) in parts)
    try:
        prompt, text, images = encode(torch.rand(*picture, 3), mask=painted, region=region)
    except InputError as problem:  # a crop leaves the dab out, in a region near the edge, too
        assert unseen and "set region to mask" in str(problem)
        return
    assert prompt.batch == count and len(images) == count
    masked = prompt.initial.image == MASKED
    assert masked[0].any()
    assert (masks in (1, count)) != ("in turn" in text or "not used" in text)
    for sample in range(1, count):
        assert masked[sample].all() or sample % masks == 0
    assert "image tokens are drawn anew" in text


def test_a_picture_of_another_world_is_called_that(nodes, host, run_node):
    """The demo's own scenes, on paper or around a mask too, are not."""
    to_pixels, demo = nodes.pictures.to_pixels, host.load("demo", "auto", "auto")

    def strange(*pictures, mask=None, **choices):
        sides = {"width": 0, "height": 0, "text_length": 0, "mask": mask, **choices}
        words = "remove the red star"
        output = run_node(
            "EncodeInstruction", model=demo, image=to_pixels(pictures), instruction=words, **sides
        )
        return "does not know pictures like this one" in str((output.ui or {}).get("text"))

    scene = task(7).source
    photo = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    assert strange(photo) and strange(render(scene), photo)
    assert not strange(render(scene)) and not strange(on_paper(scene))
    wall = on_a_wall(scene, [scene, scene])
    mask = painted(1024, 1536, 400, 700, 450, 760)
    assert strange(wall, mask=mask) and not strange(wall, mask=mask, **AROUND)


@pytest.mark.parametrize("checkpoint", ["demo", "picture-book"])
def test_a_scene_of_the_other_small_world_is_called_that(host, run_node, checkpoint):
    model = host.load(checkpoint, "auto", "auto")
    sides = {"width": 0, "height": 0, "text_length": 0}
    for world in ("demo", "picture-book"):
        image, _ = run_node("DemoScene", seed=1, edit="any", world=world)
        words = "remove the red star" if checkpoint == "demo" else "now it is night"
        output = run_node("EncodeInstruction", model=model, image=image, instruction=words, **sides)
        said = "with this checkpoint as its world" in str((output.ui or {}).get("text"))
        assert said == (world != checkpoint)

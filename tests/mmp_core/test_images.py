import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core.image import pictures as images
from PIL import Image

SIZES = images.crop_sizes(16, 32)
PIL_MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "F",
    "I;16",
    "I;16B",
    "I;16L",
]


def noise(width, height, seed=0):
    levels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def in_mode(mode, width=9, height=7):
    picture = noise(width, height)
    if mode.startswith("I;16"):
        deep = np.arange(width * height, dtype=np.uint16).reshape(height, width) * 1000
        return Image.frombytes(
            mode, (width, height), deep.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
        )
    if mode in ("La", "RGBa"):
        return picture.convert(mode.upper()).convert(mode)
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), picture.tobytes())
    if mode == "PA":
        return picture.convert("P").convert("PA")
    return picture.convert(mode)


def reopened(image, suffix="png", **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return Image.open(file)


@pytest.mark.parametrize("mode", PIL_MODES)
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    source = in_mode(mode)
    before = source.tobytes()
    loaded = images.load_image(source)
    assert (loaded.mode, loaded.size) == ("RGB", (9, 7))
    assert source.mode == mode and source.tobytes() == before


def test_transparent_pixels_become_white():
    clear = Image.new("RGBA", (1, 1), (200, 10, 10, 0))
    assert images.load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("LA", (1, 1), (0, 128))
    assert images.load_image(half).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 70, 80, 90])
    palette.putpixel((1, 0), 1)
    loaded = images.load_image(reopened(palette, transparency=0))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (70, 80, 90)]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_sixteen_bits_are_scaled_not_clipped(mode):
    deep = np.array([[0, 257 * 100, 65535]])
    kind = {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")
    source = Image.frombytes(mode, (3, 1), deep.astype(kind).tobytes())
    assert list(np.asarray(images.load_image(source))[0, :, 0]) == [0, 100, 255]


def test_sixteen_bit_png_from_a_file(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(path)
    assert list(np.asarray(images.load_image(path))[0, :, 0]) == [0, 128, 255]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([float("nan"), 0.2, 1.0], [0, 51, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
    ],
)
def test_float_greyscale_finds_its_scale(values, expected):
    source = Image.fromarray(np.array([values], np.float32))
    assert list(np.asarray(images.load_image(source))[0, :, 0]) == expected


def test_transparent_level_of_sixteen_bit_grey_becomes_white():
    source = Image.fromarray(np.array([[0, 300, 65535]], np.uint16))
    source.info["transparency"] = 300
    assert list(np.asarray(images.load_image(source))[0, :, 0]) == [0, 255, 255]


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    source = Image.new("RGB", (20, 10), "red")
    source.paste("blue", (0, 0, 10, 10))
    loaded = images.load_image(reopened(source, "jpeg", exif=exif, quality=100, subsampling=0))
    assert loaded.size == (10, 20)
    assert loaded.getpixel((5, 4))[2] > 200 and loaded.getpixel((5, 15))[0] > 200


def test_first_frame_of_an_animation(tmp_path):
    path = tmp_path / "moving.gif"
    Image.new("RGB", (4, 4), "red").save(
        path, save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")]
    )
    assert images.load_image(path).getpixel((1, 1)) == (255, 0, 0)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.png: no such file"):
        images.load_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_truncated_files_are_named(tmp_path, suffix):
    file = io.BytesIO()
    noise(40, 40).save(file, suffix)
    for share in (0.0, 0.02, 0.5):
        path = tmp_path / f"cut{share}.{suffix}"
        path.write_bytes(file.getvalue()[: int(len(file.getvalue()) * share)])
        with pytest.raises(ValueError, match=f"cut{share}"):
            images.load_image(path)


@settings(max_examples=60)
@given(
    st.sampled_from(["png", "jpeg", "gif", "webp", "tiff"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
)
def test_damaged_files_load_or_are_named(tmp_path_factory, suffix, changes):
    file = io.BytesIO()
    noise(16, 16).save(file, suffix)
    damaged = bytearray(file.getvalue())
    for place, value in changes:
        damaged[place % len(damaged)] = value
    path = tmp_path_factory.mktemp("damaged") / "x.img"
    path.write_bytes(damaged)
    try:
        assert images.load_image(path).mode == "RGB"
    except ValueError as error:
        assert "x.img" in str(error)


@given(st.integers(1, 300), st.integers(1, 64), st.floats(1.0, 8.0))
def test_crop_sizes_keep_budget_and_ratio(area, patch, ratio):
    sizes = images.crop_sizes(area, patch, ratio)
    assert sizes and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % patch == 0 and height % patch == 0
        assert width * height <= area * patch**2
        assert max(width, height) <= ratio * min(width, height)


@settings(max_examples=40)
@given(st.integers(1, 700), st.integers(1, 700), st.one_of(st.none(), st.integers(0, 99)))
def test_any_size_fits_one_of_the_sizes(width, height, seed):
    source = Image.new("RGB", (width, height), "green")
    offset = "center" if seed is None else random.Random(seed)
    fitted = images.fit_image(source, SIZES, offset=offset)
    assert fitted.size in SIZES
    assert fitted.getextrema() == ((0, 0), (128, 128), (0, 0))


def test_fit_is_deterministic_and_centred():
    source = Image.new("RGB", (300, 100), "red")
    source.paste("blue", (100, 0, 200, 100))
    fitted = images.fit_image(source, [(100, 100)])
    assert fitted.tobytes() == images.fit_image(source, [(100, 100)]).tobytes()
    assert fitted.getpixel((50, 50)) == (0, 0, 255)
    assert fitted.getpixel((5, 50)) == (0, 0, 255) and fitted.getpixel((94, 50)) == (0, 0, 255)


@pytest.mark.parametrize("size", [(1, 30000), (30000, 1), (3, 60000)])
def test_a_long_strip_needs_no_huge_memory(size):
    sizes = images.crop_sizes(256, 32)
    assert images.fit_image(Image.new("RGB", size, "red"), sizes).size in sizes


def test_squash_keeps_the_whole_picture():
    assert images.squash_image(noise(50, 20), (48, 32)).size == (48, 32)


@pytest.mark.parametrize("pixel_range", [images.UNIT_RANGE, images.SIGNED_RANGE])
def test_pixels_come_back_within_one_level(pixel_range):
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = images.to_pixels(Image.fromarray(levels), pixel_range)
    assert pixels.shape == (1, 3, 16, 16) and pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == pixel_range
    back = np.asarray(images.to_pil(pixels, pixel_range)[0]).astype(int)
    assert np.abs(back - levels).max() <= (0 if pixel_range == images.UNIT_RANGE else 1)


def test_pictures_of_a_batch_clip_and_survive_nan():
    pixels = torch.stack([torch.full((3, 2, 4), value) for value in (-9.0, 9.0, float("nan"))])
    pictures = images.to_pil(pixels.bfloat16(), images.SIGNED_RANGE)
    assert [picture.size for picture in pictures] == [(4, 2)] * 3
    assert [picture.getpixel((0, 0))[0] for picture in pictures] == [0, 255, 0]


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1))
def test_outpainting_complements_inpainting(grid_h, grid_w, h_ratio, w_ratio):
    height, width = 16 * grid_h, 16 * grid_w
    inside, outside = (
        images.painting_mask(height, width, grid_h, grid_w, mode, h_ratio, w_ratio)
        for mode in ("inpainting", "outpainting")
    )
    assert inside.shape == (grid_h, grid_w) and inside.dtype == torch.bool
    assert not (inside & outside).any()
    if h_ratio == w_ratio == 1:
        assert inside.all()


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: images.load_image(Image.new("RGB", (0, 3))), "0x3"),
        (lambda: images.crop_sizes(0, 32), "area 0"),
        (lambda: images.crop_sizes(256, 32, 0.5), "max_ratio 0.5"),
        (lambda: images.fit_image(noise(4, 4), []), "sizes is empty"),
        (lambda: images.fit_image(noise(4, 4), SIZES, offset="left"), "offset is 'left'"),
        (lambda: images.fit_image(Image.new("L", (4, 4)), SIZES), "mode L"),
        (lambda: images.squash_image(noise(4, 4), (0, 0)), "size is 0x0"),
        (lambda: images.to_pixels(Image.new("P", (4, 4)), images.UNIT_RANGE), "mode P"),
        (lambda: images.to_pixels(noise(4, 4), (0, 255)), "pixel_range"),
        (lambda: images.to_pil(torch.zeros(3, 4, 4), images.UNIT_RANGE), r"shape \(3, 4, 4\)"),
        (lambda: images.to_pil(torch.zeros(1, 3, 4, 4).int(), images.UNIT_RANGE), "int32"),
        (lambda: images.painting_mask(32, 32, 2, 2, "paint", 0.5, 0.5), "mode is 'paint'"),
        (lambda: images.painting_mask(32, 32, 2, 2, "inpainting", 1.5, 0.5), "h_ratio 1.5"),
        (lambda: images.painting_mask(32, 32, 0, 2, "inpainting", 0.5, 0.5), "grid of 2x0"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()

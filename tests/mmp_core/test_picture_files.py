"""The one reader of pictures and the one checker of names, over whatever there is on disks."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core.errors import InputError
from mmada_parallel.mmp_core.files import checked_path, existing_file, replacing, writable_file
from mmada_parallel.mmp_core.image import files
from mmada_parallel.training.data.items import checked_picture
from PIL import Image, ImageCms, ImageOps, features

GRADIENT = Image.fromarray(
    np.stack(
        np.broadcast_arrays(np.arange(48)[None] * 5, np.arange(40)[:, None] * 6, 90), -1
    ).astype(np.uint8)
)
"""48x40, which looks different however it is turned."""

TAGS = [256, 259, 270, 271, 282, 283, 296, 306, 34665, 34853, 36867, 37510, 41986, 42016]
values = st.one_of(
    st.integers(0, 65535),
    st.integers(-5, -1),
    st.text(max_size=8),
    st.binary(max_size=12),
    st.floats(0, 1e6),
)


def entry(tag, kind, count, value):
    return struct.pack("<HHI4s", tag, kind, count, value)


def raw_exif(*entries, tail=b""):
    """EXIF as a file holds it, however odd, of (tag, type, count, four bytes of value)."""
    body = struct.pack("<H", len(entries)) + b"".join(entry(*one) for one in entries)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + body + b"\0\0\0\0" + tail


ORIENTATION_6 = (0x0112, 3, 1, struct.pack("<HH", 6, 0))


def saved(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "odd",
    [
        pytest.param((282, 10, 1, struct.pack("<I", 200)), id="resolution -1/0"),
        pytest.param((282, 5, 1, struct.pack("<I", 200)), id="resolution 1/0"),
        pytest.param((34853, 2, 4, b"text"), id="GPS as text"),
        pytest.param((34853, 4, 1, b"\xff\xff\xff\x7f"), id="GPS beyond the end"),
        pytest.param((34665, 3, 1, b"\0\0\0\0"), id="Exif at nothing"),
        pytest.param((270, 2, 0x7FFFFFFF, b"\0\0\0\0"), id="a text of 2 GB"),
        pytest.param((4660, 99, 1, b"\1\2\3\4"), id="an unknown type"),
    ],
)
def test_an_odd_tag_beside_the_orientation_does_not_matter(tmp_path, form, odd):
    exif = raw_exif(ORIENTATION_6, odd, tail=bytes(200) + struct.pack("<iI", -1, 0))
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    content = saved(GRADIENT, form, exif=exif, **options)
    file = tmp_path / "photo"
    file.write_bytes(content)

    loaded = files.load_image(file)

    assert loaded.size == (40, 48)
    expected = np.asarray(GRADIENT.transpose(Image.Transpose.ROTATE_270), float)
    assert np.abs(np.asarray(loaded, float) - expected).max() <= 8
    assert files.load_image(loaded).size == (40, 48)  # the orientation is applied once
    assert files.read_original(file).size == (40, 48)
    assert checked_picture("it", content, lambda: loaded).size == (40, 48)


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_orientations_that_do_not_exist_are_ignored_alike(value):
    content = saved(GRADIENT, exif=raw_exif((0x0112, 3, 1, struct.pack("<HH", value, 0))))
    assert files.load_image(io.BytesIO(content)).size == (48, 40)
    assert files.read_original(io.BytesIO(content)).size == (48, 40)
    assert checked_picture("it", content, lambda: GRADIENT).size == (48, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation_is_turned_as_pillow_turns_it(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(GRADIENT, form, exif=exif)
    opened = Image.open(io.BytesIO(content))
    expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert np.array_equal(np.asarray(files.load_image(io.BytesIO(content))), np.asarray(expected))
    assert checked_picture("it", content, lambda: expected).size == expected.size


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP"]),
    st.dictionaries(st.sampled_from([0x0112, *TAGS]), values, max_size=5),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
)
def test_whatever_the_exif_says_the_picture_is_read(form, tags, changes):
    exif = Image.Exif()
    for tag, value in tags.items():
        exif[tag] = value
    try:
        raw = bytearray(exif.tobytes())
    except Exception:
        raw = bytearray(raw_exif(ORIENTATION_6))
    for place, byte in changes:
        if len(raw) > 14:
            raw[14 + place % (len(raw) - 14)] = byte
    content = saved(GRADIENT, form, exif=bytes(raw))
    loaded = files.load_image(io.BytesIO(content))
    assert loaded.size == checked_picture("it", content, lambda: loaded).size
    assert loaded.size == files.read_original(io.BytesIO(content)).size


@pytest.mark.parametrize(
    "mode, kept",
    {
        "1": "L",
        "L": "L",
        "LA": "LA",
        "P": "RGB",
        "RGB": "RGB",
        "RGBA": "RGBA",
        "CMYK": "RGB",
        "YCbCr": "RGB",
        "HSV": "RGB",
        "LAB": "RGB",
        "I;16": "I;16",
        "I;16B": "I;16",
        "I": "RGB",
        "F": "RGB",
        "La": "LA",
        "RGBa": "RGBA",
    }.items(),
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_original_keeps_what_its_mode_can_hold(mode, kept, orientation):
    image = GRADIENT.convert("L").convert(mode) if "16" in mode else GRADIENT
    if mode in ("La", "LAB", "RGBa"):
        image = Image.new(mode, GRADIENT.size)
    elif "16" not in mode:
        image = GRADIENT.convert("RGB").convert("L" if mode in ("1", "I", "F") else "RGB")
        image = image.convert(mode) if image.mode != mode else image
    image.getexif()[0x0112] = orientation
    size = (40, 48) if orientation == 6 else (48, 40)
    assert (files.read_original(image).mode, files.read_original(image).size) == (kept, size)
    assert (files.load_image(image).mode, files.load_image(image).size) == ("RGB", size)


def test_sixteen_bits_alpha_and_profiles_survive_reading_and_writing(tmp_path):
    deep = Image.fromarray((np.arange(48 * 40).reshape(40, 48) * 34).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    files.write_picture(tmp_path / "again.png", files.read_original(tmp_path / "deep.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), np.asarray(deep))

    clear = GRADIENT.copy()
    clear.putalpha(GRADIENT.convert("L"))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clear.save(tmp_path / "clear.png", icc_profile=profile)
    original = files.read_original(tmp_path / "clear.png")
    for name in ("out.png", "out.webp", "out.jpg"):
        files.write_picture(tmp_path / name, original)
        written = Image.open(tmp_path / name)
        assert written.info["icc_profile"] == profile
        assert written.mode == ("RGB" if name == "out.jpg" else "RGBA")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.asarray(clear))


def test_a_profile_for_other_pixels_is_left_behind(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cmyk = bytearray(profile)
    cmyk[16:20] = b"CMYK"
    GRADIENT.convert("CMYK").save(tmp_path / "print.jpg", icc_profile=bytes(cmyk))
    assert "icc_profile" not in files.read_original(tmp_path / "print.jpg").info


@pytest.mark.parametrize("ending", [".png", ".jpg", ".JPEG", ".webp"])
def test_each_format_carries_how_the_picture_was_made(tmp_path, ending):
    notes = {"instruction": "mach es grün 🎨", "seed": "7", "text": "so"}
    file = tmp_path / f"out{ending}"
    files.write_picture(file, GRADIENT, notes=notes)
    written = Image.open(file)
    read = written.text if ending == ".png" else json.loads(written.getexif()[0x010E])
    assert dict(read) == notes


def test_texts_too_long_for_exif_are_shortened(tmp_path):
    notes = {"instruction": "ü" * 100_000, "seed": "7"}
    files.write_picture(tmp_path / "out.jpg", GRADIENT, notes=notes)
    read = json.loads(Image.open(tmp_path / "out.jpg").getexif()[0x010E])
    assert read["seed"] == "7" and read["instruction"].startswith("üüü")


def test_quality_decides_the_size_of_a_file(tmp_path):
    noise = Image.effect_noise((96, 96), 80).convert("RGB")
    for name in ("a.jpg", "a.webp"):
        sizes = []
        for quality in (30, 95):
            files.write_picture(tmp_path / name, noise, quality=quality)
            sizes.append((tmp_path / name).stat().st_size)
        assert sizes[0] < 0.7 * sizes[1]


def test_a_side_that_a_format_cannot_have_is_named(tmp_path):
    with pytest.raises(InputError, match="16383"):
        files.write_picture(tmp_path / "long.webp", Image.new("RGB", (16_384, 1)))
    assert not list(tmp_path.iterdir())


def png_header(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(20_000, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("limit", [None, 10**6])
def test_bombs_are_refused_before_they_are_decoded(tmp_path, monkeypatch, size, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # as other packs set it
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    for read in (files.load_image, files.read_original):
        with pytest.raises(InputError, match="178 million pixels"):
            read(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="178 million pixels"):
        checked_picture("it", png_header(*size), lambda: GRADIENT)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
FITS = b"".join(
    f"{card:<80}".encode() for card in ("SIMPLE  = T", "BITPIX  = 8", "NAXIS = 0", "END")
)


@pytest.mark.parametrize("content", [EPS, FITS, b"P6 9 9 255 " + bytes(243), b"BLP1" + bytes(200)])
def test_formats_that_run_programs_or_are_decoded_by_python_are_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="format that is read .PNG, JPEG, WEBP.*replace it"):
        files.load_image(tmp_path / "a.png")


@pytest.mark.parametrize("form", files.READ)
def test_each_format_that_is_named_is_read(tmp_path, form):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow lacks AVIF")
    GRADIENT.save(tmp_path / "a", form)
    assert files.load_image(tmp_path / "a").size == GRADIENT.size


@pytest.mark.parametrize("ending", files.FORMATS)
@pytest.mark.parametrize("size", [2**20, 2**20 + 1, 255 * 65_519 + 1])
def test_what_is_written_with_a_large_profile_is_read_again(tmp_path, caplog, ending, size):
    original = GRADIENT.copy()
    original.info["icc_profile"] = profile = b"\0" * 16 + b"RGB " + bytes(size - 20)
    files.write_picture(tmp_path / f"a{ending}", original)
    kept = files.read_original(tmp_path / f"a{ending}").info.get("icc_profile") == profile
    most = {".png": 2**20, ".webp": size}.get(ending, 255 * 65_519)
    assert kept is (size <= most) and bool(caplog.messages) is not kept


NAMES = [
    "x" * 300, "ü" * 200, "a/" * 3000 + "b", "\0", "a\0.png", "", "   ", "\ud800.png",
    "~no such user/x",
]  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, 7, None, b"bytes", ["a"]])
def test_names_that_no_file_can_have_are_refused_in_one_sentence(name):
    for check in (
        lambda: checked_path(name, "--out"),
        lambda: existing_file(name, "--out", "give another"),
        lambda: writable_file(name, "--out"),
        lambda: files.writable_picture(name, "--out"),
    ):
        with pytest.raises(InputError) as refused:
            check()
        assert str(refused.value).startswith("--out") and len(str(refused.value)) < 300


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(max_size=300))
def test_any_name_can_be_written_or_is_refused(tmp_path, name):
    try:
        path = writable_file(tmp_path / f"{name}.png", "--out")
    except (InputError, ValueError) as error:
        assert isinstance(error, InputError)
        return
    if path.resolve().is_relative_to(tmp_path.resolve()):
        with replacing(path) as file:
            file.write_bytes(b"1")
        assert path.read_bytes() == b"1"
        path.unlink()


def test_the_longest_name_that_is_allowed_can_be_written(tmp_path):
    path = writable_file(tmp_path / ("n" * 251 + ".png"), "--out", (".png",))
    with replacing(path) as file:
        file.write_bytes(b"1")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_no_file_to_write_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "file").write_bytes(b"")
    for path, reason in [
        (tmp_path, "is a folder"),
        (tmp_path / "pipe.png", "not a regular file"),
        (tmp_path / "file" / "a.png", "is no folder"),
        (tmp_path / "a.tiff", "end the name in .png"),
        (tmp_path / "a", "end the name in .png"),
    ]:
        with pytest.raises(InputError, match=reason):
            files.writable_picture(path, "--out")
    with pytest.raises(InputError, match="a quality is for JPEG, WebP"):
        files.writable_picture(tmp_path / "a.png", "--out", quality=80)
    for path, reason in [(tmp_path, "a folder"), (tmp_path / "pipe.png", "a pipe")]:
        with pytest.raises(InputError, match=reason):
            files.load_image(path)


def test_a_png_tells_of_each_part_that_is_written(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    told, written = [], tmp_path / "a.png"
    files.write_picture(written, Image.fromarray(levels), tell=lambda: told.append(1))
    assert len(told) >= written.stat().st_size // 2**16 > 10
    assert np.array_equal(np.asarray(Image.open(written)), levels)


def test_a_png_that_is_stopped_is_not_there(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_picture(tmp_path / "a.png", GRADIENT, tell=stop)
    assert list(tmp_path.iterdir()) == []

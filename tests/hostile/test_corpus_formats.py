"""The smallest case of each fault of a fifth search: formats, names, lists and numbers."""

import gzip
import io
import os
import struct
import zlib

import numpy as np
import pytest
from mmada_parallel.cli import many, surroundings
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.load import load_checkpoint
from mmada_parallel.mmp_core.errors import InputError
from mmada_parallel.mmp_core.image.files import load_image, load_mask, read_original
from mmada_parallel.training.data.dataset import open_dataset
from mmada_parallel.training.loop.folder import RunFolder
from mmada_parallel.training.sft.settings import SFTSettings
from PIL import Image, ImageFile, features

from .limits import judged
from .test_corpus import refused
from .test_corpus_data import chunk, scanned_again

READERS = [load_image, load_mask, read_original]
GIGABYTE = 2**30


def fits(width, height, content):
    """An astronomer's picture, which Pillow decodes by Python, pixel by pixel."""

    def header(**cards):
        lines = [f"{name:<8}= {value:>20}".ljust(80) for name, value in cards.items()]
        return "".join([*lines, "END".ljust(80)]).ljust(2880).encode()

    first = header(SIMPLE="T", BITPIX=8, NAXIS=0)
    table = {"XTENSION": "'BINTABLE'", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 1}
    table |= {"ZIMAGE": "T", "ZBITPIX": 8, "ZNAXIS": 2, "ZNAXIS1": width, "ZNAXIS2": height}
    table |= {"ZCMPTYPE": "'GZIP_1  '", "PCOUNT": 0, "GCOUNT": 1}
    return first + header(**table) + bytes(8) + gzip.compress(content) + bytes(100)


def blp(jpeg, side):
    """A game's picture, around a JPEG."""
    sizes = struct.pack("<iI2I2i", 1, 0, side, side, 5, 0)[4:]
    head = b"BLP1" + struct.pack("<i", 0) + sizes
    at = len(head) + 2 * 64 + 4
    tables = struct.pack("<16I16II", at, *[0] * 15, len(jpeg), *[0] * 15, 0)
    return head + tables + jpeg


def skipping(width):
    """A BMP one pixel high that skips 255 rows, again and again."""
    pixels = b"\0\2\0\xff" * 8 + b"\0\1"
    palette = bytes(4 * 256)
    at = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", at + len(pixels), 0, 0, at) + info + palette + pixels


def tiff_of(jpeg, side):
    """A TIFF of one strip, which is a JPEG."""
    tags = [
        (256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 7), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 4, side), (279, 4, len(jpeg)),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in tags
    )
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(jpeg)) + jpeg + directory


PICTURES = {
    "nothing, gzipped": lambda: fits(13_000, 13_000, b""),
    "zeros, gzipped": lambda: fits(6000, 6000, bytes(6000 * 6000)),
    "scans of a game's picture": lambda: blp(scanned_again(2000), 2000),
    "rows that are skipped": lambda: skipping(170_000_000),
    "scans of a TIFF": lambda: tiff_of(scanned_again(2000), 2000),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("made", PICTURES.values(), ids=PICTURES)
def test_a_small_picture_of_much_work(tmp_path, made, read):
    (tmp_path / "a.png").write_bytes(made())
    assert (tmp_path / "a.png").stat().st_size < 2**20
    refused(lambda: read(tmp_path / "a.png"), "a.png", seconds=2, memory=GIGABYTE)


@pytest.mark.parametrize("form, most", [("JPEG2000", 40), ("WEBP", 60), ("AVIF", 90)])
def test_a_format_that_takes_much_memory_is_of_fewer_pixels(tmp_path, form, most):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow lacks AVIF")
    side = int((most * 10**6) ** 0.5)
    Image.new("RGB", (side, side + 200)).save(tmp_path / "large.png", form)
    refused(lambda: load_image(tmp_path / "large.png"), f"more than {most} million pixels")


@pytest.mark.slow
@pytest.mark.parametrize("form, side", [("JPEG2000", 6320), ("WEBP", 7740), ("AVIF", 9480)])
def test_the_largest_of_such_a_format_takes_a_gigabyte(tmp_path, form, side):
    Image.new("RGB", (side, side)).save(tmp_path / "a.png", form)
    verdict = judged(lambda: load_image(tmp_path / "a.png"), memory=int(1.3 * GIGABYTE))
    assert verdict[0] == "ok", verdict


def test_a_tiff_of_a_jpeg_as_cameras_write_it_is_read(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 100).save(buffer, "JPEG")
    (tmp_path / "a.tif").write_bytes(tiff_of(buffer.getvalue(), 64))
    assert load_image(tmp_path / "a.tif").getpixel((9, 9)) == (100, 100, 100)
    Image.new("RGB", (640, 640)).save(tmp_path / "b.tif", compression="jpeg")
    assert load_image(tmp_path / "b.tif").size == (640, 640)


def test_a_list_of_millions_of_instructions(tmp_path):
    (tmp_path / "list.txt").write_text("a\n" * 2**23)
    refused(lambda: many.instructions_of(f"@{tmp_path / 'list.txt'}"), "at most 100000", seconds=3)


@pytest.mark.parametrize("content", [b'__version__ = "0.1"  # caf\xe9', b"\xff\xfe\0", b""])
def test_a_version_in_any_encoding(tmp_path, content):
    (tmp_path / "comfyui_version.py").write_bytes(content)
    said = surroundings._comfyui(tmp_path / "models" / "mmada_parallel")
    assert said in ("0.1", "not known", "not found")


def test_models_of_which_one_cannot_be_looked_into(tmp_path, monkeypatch):
    for name in ("locked", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    known = os.stat

    def stat(path, *args, **options):
        if "locked/" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return known(path, *args, **options)

    monkeypatch.setattr(os, "stat", stat)
    found = surroundings._models(tmp_path)
    assert set(found) == {"demo", "locked", "other"}
    assert all(found[name].startswith("cannot be loaded") for name in ("locked", "other"))


def test_a_parquet_file_without_rows(tmp_path):
    arrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    empty = arrow.table({"instruction": arrow.array([], arrow.string())})
    parquet.write_table(empty, tmp_path / "e.parquet")
    refused(lambda: open_dataset(tmp_path / "e.parquet"), "e.parquet is empty: give one with rows.")


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_in_another_encoding(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path / "m") + b"\xff")
    os.mkdir(folder)
    said = "not in UTF-8; rename"
    refused(lambda: convert("demo", f"{folder}/x.safetensors"), "OUT", said)
    refused(lambda: RunFolder(folder), "The folder of the run", said)
    convert("demo", tmp_path / "x.safetensors")
    os.rename(tmp_path / "x.safetensors", f"{folder}/x.safetensors")
    refused(lambda: load_checkpoint(f"{folder}/x.safetensors"), said)
    Image.new("RGB", (9, 9)).save(f"{folder}/a.png")
    assert load_image(f"{folder}/a.png").size == (9, 9)


@pytest.mark.parametrize("name", ["clip_norm", "learning_rate", "ema", "weight_decay"])
def test_a_number_that_no_float_can_be(name):
    with pytest.raises(InputError, match=name):
        SFTSettings(**{name: 10**400})


def wide(kind, width):
    """A PNG one pixel high, of nothing: of grey with 16 bits, of grey with alpha, of a palette."""
    colours, bits, size = {"grey": (0, 16, 2), "alpha": (4, 8, 2), "palette": (3, 8, 1)}[kind]
    packed, left = zlib.compressobj(9), 1 + width * size
    content = b"".join(packed.compress(bytes(min(2**22, left - n))) for n in range(0, left, 2**22))
    start = png_header(width, 1, bits, colours)
    middle = chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\x80") if kind == "palette" else b""
    return start + middle + chunk(b"IDAT", content + packed.flush()) + chunk(b"IEND")


def png_header(width, height, bits, colours):
    fields = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", fields)


@pytest.mark.parametrize("read", [load_image, load_mask])
@pytest.mark.parametrize("kind", ["grey", "alpha", "palette"])
def test_a_picture_of_one_long_row_takes_a_gigabyte_at_most(tmp_path, kind, read):
    (tmp_path / "a.png").write_bytes(wide(kind, 60_000_000))
    verdict, said = judged(lambda: read(tmp_path / "a.png"), memory=GIGABYTE)
    assert verdict == "ok", said


def test_a_row_that_is_too_long_for_its_reader(tmp_path):
    (tmp_path / "a.png").write_bytes(wide("grey", 170_000_000))
    refused(lambda: load_image(tmp_path / "a.png"), "takes more memory than there is")


@pytest.mark.parametrize("work", [(ImageFile.ImageFile, "load"), (Image.Image, "convert")])
@pytest.mark.parametrize("read", READERS)
def test_memory_that_runs_out_is_no_damage(tmp_path, monkeypatch, read, work):
    def refuse(*_, **options):
        raise MemoryError

    Image.new("RGBA", (9, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(*work, refuse)
    refused(lambda: read(tmp_path / "a.png"), "takes more memory than there is: make it smaller.")


@pytest.mark.parametrize("infinite", [[np.inf], [-np.inf], [np.inf, -np.inf, np.nan]])
def test_infinite_values_leave_the_others_alone(tmp_path, infinite):
    values = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    plain = Image.fromarray(values.copy())
    values.flat[: len(infinite)] = infinite
    Image.fromarray(values).save(tmp_path / "depth.tif")
    found, expected = (np.asarray(load_mask(x)) for x in (tmp_path / "depth.tif", plain))
    assert (found.flat[len(infinite) :] == expected.flat[len(infinite) :]).all()
    ends = [255 if value > 0 else 0 for value in infinite]
    assert found.flat[: len(infinite)].tolist() == ends


@pytest.mark.skipif(os.name == "nt", reason="has no pipes among files")
def test_a_pipe_in_a_folder_of_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    os.mkfifo(tmp_path / "a.parquet")
    refused(lambda: open_dataset(tmp_path), "a.parquet is not a regular file", seconds=3)


def test_half_an_emoji_in_the_name_of_a_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"\\ud83d": "x", "instruction": "make it red"}\n')
    refused(lambda: open_dataset(tmp_path / "a.jsonl"), "unknown \\ud83d")

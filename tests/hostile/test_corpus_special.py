"""The smallest case of each fault of a fourth search: pickles, pipes, tiles, strips and names."""

import copy
import io
import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.image import modes
from mmada_parallel.mmp_core.image.files import load_image, load_mask
from mmada_parallel.mmp_core.image.masks import covered
from mmada_parallel.training.data.dataset import open_dataset
from mmada_parallel.training.loop.folder import RunFolder
from PIL import Image

from .limits import judged
from .test_corpus import refused

FEW_SECONDS = {"seconds": 5}


def nested(width, depth):
    """A pickle of a dictionary with one key: a tuple of so many equal ones, and so on."""
    content = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.BININT1 + b"\x01"
    content += pickle.TUPLE1 + pickle.BINPUT + b"\x00"
    for place in range(depth):
        same = pickle.BINGET + bytes([place])
        content += pickle.MARK + same * width + pickle.TUPLE + pickle.BINPUT + bytes([place + 1])
    return content + pickle.NONE + pickle.SETITEM + pickle.STOP


def archived(content, file):
    buffer = io.BytesIO()
    torch.save({"step": 1}, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(file, "w") as out:
        for entry in whole.infolist():
            pickled = entry.filename.endswith("data.pkl")
            out.writestr(entry.filename, content if pickled else whole.read(entry))


def in_the_old_format(content, file):
    before = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    pickled = b"".join(pickle.dumps(each, 2) for each in before)
    file.write_bytes(pickled + content + pickle.dumps([], 2))


@pytest.mark.parametrize("write", [archived, in_the_old_format])
@pytest.mark.parametrize("width, depth", [(2, 60), (100, 10)])
def test_a_state_whose_key_never_hashes(tmp_path, write, width, depth):
    write(nested(width, depth), tmp_path / "run.pt")
    assert (tmp_path / "run.pt").stat().st_size < 5000
    refused(lambda: RunFolder(tmp_path).read("cpu"), "it holds more than", **FEW_SECONDS)


def test_a_state_whose_key_is_a_small_tuple_is_read(tmp_path):
    RunFolder(tmp_path).write({"step": 1, (1, (2, 3)): torch.zeros(3), "same": [(1, 2)] * 100})
    assert RunFolder(tmp_path).read("cpu")[1, (2, 3)].tolist() == [0, 0, 0]


def test_a_state_whose_parts_overlap(tmp_path):
    """One part of 2 MB by 200 names would take 400."""
    with zipfile.ZipFile(tmp_path / "run.pt", "w") as out:
        out.writestr("run/data.pkl", pickle.dumps({"step": 1}, 2))
        out.writestr("run/data/0", bytes(2**21))
        (*_, part) = out.filelist
        for number in range(1, 200):
            again = copy.copy(part)
            again.filename = f"run/data/{number}"
            out.filelist.append(again)
    refused(lambda: RunFolder(tmp_path).read("cpu"), "its parts overlap", **FEW_SECONDS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_pipes_in_the_place_of_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "log.jsonl")
    folder = RunFolder(tmp_path / "run")
    refused(lambda: folder.log({"step": 1}), "not a regular file", **FEW_SECONDS)

    def held():
        with folder.held():
            pass

    refused(held, "not a regular file", **FEW_SECONDS)
    datasets.Dataset.from_dict({"instruction": ["a"]}).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.unlink()
    os.mkfifo(file)
    refused(lambda: open_dataset(tmp_path / "saved"), "not a regular file", **FEW_SECONDS)


def test_an_item_whose_name_is_no_text_is_skipped(tmp_path):
    for name in (b"\xff.txt", b"good.txt"):
        with open(os.path.join(os.fsencode(tmp_path), name), "w") as file:
            file.write("draw a red star")
    opened = open_dataset(tmp_path)
    assert [item.name for item in opened] == ["good"]
    ((name, why),) = opened.skipped
    assert name == "?" and "invalid character" in why
    opened.report().encode()


def tiled(side, tile, count):
    """A TIFF of ``side`` x ``side`` grey pixels in ``count`` tiles, which are all one of ``tile`` x
    ``tile``."""
    packed = zlib.compress(bytes(tile * tile), 9)
    tags = {256: side, 257: side * count, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile}
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    places = [(324, start), (325, start + 4 * count)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    entries += [struct.pack("<HHII", tag, 4, count, place) for tag, place in places]
    data = start + 8 * count
    arrays = struct.pack(f"<{2 * count}I", *[data] * count, *[len(packed)] * count)
    header = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return header + b"".join(entries) + bytes(4) + arrays + packed


def test_a_picture_in_tiles_far_larger_than_it(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiled(16, 8192, 3))
    refused(lambda: load_image(tmp_path / "a.tif"), "far larger tiles", **FEW_SECONDS)
    Image.new("RGB", (70, 50), "red").save(tmp_path / "b.tif", tile=(64, 64))
    (tmp_path / "c.tif").write_bytes(tiled(64, 64, 3))
    for name, size in (("b.tif", (70, 50)), ("c.tif", (64, 192))):
        assert load_image(tmp_path / name).size == size


def test_a_checkpoint_with_more_tensors_than_its_model_is_not_converted(folder, tmp_path):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    for number in range(3000):
        header[f"x{number}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    said = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(said)) + said + content[8 + size :])
    refused(lambda: load_checkpoint(folder), "which this model does not have")
    out = tmp_path / "out.safetensors"
    refused(lambda: convert(folder, out), "which this model does not have", seconds=10)
    assert not out.exists()


def test_a_mask_of_a_long_strip_takes_little_memory():
    strip = torch.ones(1, 32, 1_000_000)
    strip[..., 500_000:] = 0

    def case():
        found = covered(strip, (8, 64))[0]
        assert torch.allclose(found[:, :32], torch.ones(8, 32)) and not found[:, 32:].any()

    verdict = judged(case, memory=2**30, seconds=5)
    assert verdict[0] == "ok", verdict


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr", "HSV", "LAB"]


@pytest.mark.parametrize("turned", [False, True], ids=["upright", "turned"])
@pytest.mark.parametrize("mode", MODES)
def test_large_pictures_are_the_same_strip_by_strip(monkeypatch, mode, turned):
    rng = np.random.default_rng(0)
    if mode in ("I", "I;16", "F"):
        image = Image.fromarray(rng.integers(0, 2**16, (40, 30)).astype("uint16"))
        image = image if mode == "I;16" else image.convert(mode)
    else:
        image = Image.fromarray(rng.integers(0, 256, (40, 30, 4)).astype("uint8"))
        image = image.convert("P" if mode == "PA" else "RGB" if mode == "LAB" else mode)
    if mode in ("P", "L"):
        image.info["transparency"] = 7
    if turned:
        image.getexif()[0x0112] = 6
    whole = [read(image) for read in (load_image, load_mask)]
    monkeypatch.setattr(modes, "SMALL", 100)
    for read, expected in zip((load_image, load_mask), whole, strict=True):
        found = read(image)
        assert (found.mode, found.size) == (expected.mode, expected.size)
        assert found.tobytes() == expected.tobytes()


def test_a_large_picture_of_few_bytes_takes_a_gigabyte_at_most(tmp_path):
    image = Image.new("1", (13_300, 13_300)).convert("P")
    image.save(tmp_path / "a.png", transparency=0, bits=1, optimize=False)
    del image
    assert (tmp_path / "a.png").stat().st_size < 2**20
    for read in (load_image, load_mask):
        verdict, said = judged(lambda read=read: read(tmp_path / "a.png"), memory=2**30)
        assert verdict == "ok", said


def test_tables_of_a_folder_unpack_to_no_more_than_one(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"instruction": ["a" * 10**8]})
    parquet.write_table(table, tmp_path / "0.parquet", compression="zstd", use_dictionary=False)
    for number in range(1, 5):
        (tmp_path / f"{number}.parquet").write_bytes((tmp_path / "0.parquet").read_bytes())
    refused(lambda: open_dataset(tmp_path), "2.parquet", "it unpacks to", seconds=10)


def test_a_column_of_lists_is_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"instruction": [[1, 2]]}), tmp_path / "a.parquet")
    refused(lambda: open_dataset(tmp_path / "a.parquet"), "its column instruction is of list")

"""The smallest dataset, picture, or name in one, for each fault that a second search found."""

import io
import struct
import zlib

import pytest
from mmada_parallel.mmp_core import files
from mmada_parallel.mmp_core.files import leads_out
from mmada_parallel.mmp_core.image.files import load_image
from mmada_parallel.training.data.dataset import open_dataset
from mmada_parallel.training.data.tables import _columns, parquet_items
from PIL import Image

from .limits import judged
from .readers import RED
from .test_corpus import refused

FEW_SECONDS = {"seconds": 3, "memory": 200 * 2**20}


@pytest.mark.parametrize("name", ["CON.png", "a.png:b.png", "a./b.png", "nul"])
def test_names_that_lead_to_devices_on_windows(monkeypatch, name):
    assert not leads_out(name)
    monkeypatch.setattr(files, "_ON_WINDOWS", True)
    assert leads_out(name) and not leads_out("sub/ü ö.png")


def test_a_table_of_more_rows_than_fit(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    same = pa.DictionaryArray.from_arrays(pa.array([0] * 1_100_000, pa.int8()), ["red"])
    parquet.write_table(pa.table({"instruction": same}), tmp_path / "a.parquet")
    refused(lambda: open_dataset(tmp_path / "a.parquet"), "has 1100000 rows; expected at most")


def test_a_table_that_unpacks_to_more_than_pictures_do(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"instruction": ["red"] * 3, "image": [bytes(2**27)] * 3})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    refused(lambda: open_dataset(tmp_path / "a.parquet"), "it unpacks to", **FEW_SECONDS)


def test_a_table_of_values_that_are_written_as_what_they_share(tmp_path):
    """Its header says that it unpacks to a few bytes each."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    schema = pa.schema({"instruction": pa.string(), "image": pa.binary()})
    shared = {"image": "DELTA_BYTE_ARRAY", "instruction": "PLAIN"}
    rows = {"instruction": ["red"] * 50, "image": [bytes(2**20 + i) for i in range(50)]}
    options = {"use_dictionary": False, "compression": "zstd", "column_encoding": shared}
    with parquet.ParquetWriter(tmp_path / "a.parquet", schema, **options) as writer:
        for _ in range(22):
            writer.write_table(pa.table(rows, schema))
    refused(lambda: open_dataset(tmp_path / "a.parquet"), "it unpacks to more", **FEW_SECONDS)


def test_a_table_whose_header_is_false_of_many_columns(tmp_path, monkeypatch):
    """A page unpacks to 2 GiB at the most, which must not come once for each column."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    read, write = [], {"compression": "zstd", "use_dictionary": False}
    batches = parquet.ParquetFile.iter_batches

    def noted(self, *args, columns, **options):
        read.append(columns)
        return batches(self, *args, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", noted)
    names = ("instruction", "think", "image")
    long = {name: ["red" * 1000] * 3 for name in names}
    parquet.write_table(pa.table(long), tmp_path / "a.parquet", **write)
    parquet_items(tmp_path / "a.parquet")
    assert read == [[name] for name in names]


@pytest.fixture
def saved_texts(tmp_path):
    """A dataset of three texts that Hugging Face's library saved, and its file of them."""
    datasets = pytest.importorskip("datasets")
    texts = [f"make it red {number}" for number in range(3)]
    rows = datasets.Dataset.from_dict({"instruction": texts, "think": texts})
    rows.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved", next((tmp_path / "saved").glob("*.arrow"))


@pytest.mark.parametrize("offsets", [(2**30, 2**30 + 13), (13, 2**31 - 1), (-(2**31) + 5, 26)])
def test_a_saved_dataset_whose_texts_lie_beyond_its_file(saved_texts, offsets):
    """Texts were read from anywhere in memory; where nothing is, the process ended."""
    folder, file = saved_texts
    content, own = file.read_bytes(), struct.pack("<4i", 0, 13, 26, 39)
    assert own in content
    file.write_bytes(content.replace(own, struct.pack("<4i", offsets[0], 13, 26, offsets[1])))
    refused(lambda: open_dataset(folder), "cannot be read as a dataset", "ffset", "save it again")


@pytest.mark.parametrize(
    "form, kept_once",
    [("zstd", False), ("zstd", True), ("lz4", False), ("lz4", True), (None, False)],
)
def test_a_saved_dataset_that_unpacks_to_any_size(saved_texts, form, kept_once):
    pa = pytest.importorskip("pyarrow")
    folder, file = saved_texts
    rows = pa.ipc.open_stream(file.read_bytes()).read_all()
    if kept_once:
        rows = rows.set_column(1, "think", rows["think"].dictionary_encode())
    options = pa.ipc.IpcWriteOptions(compression=form)
    with pa.ipc.new_stream(str(file), rows.schema, options=options) as stream:
        stream.write_table(rows)
    if form:
        refused(lambda: open_dataset(folder), f"{file.name} is compressed")
    else:
        assert len(open_dataset(folder)) == 3


def test_of_a_picture_in_a_table_its_bytes_alone_are_read():
    pa = pytest.importorskip("pyarrow")
    picture = pa.struct({"path": pa.string(), "bytes": pa.binary(), "more": pa.binary()})
    schema = pa.schema({"image": picture, "instruction": pa.string(), "other": pa.string()})
    assert _columns(schema) == ["image.bytes", "instruction"]


def test_a_manifest_of_one_long_line_with_an_emoji(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"x" * 2**27 + "\N{SMILING FACE WITH HALO}".encode())
    refused(lambda: open_dataset(tmp_path / "a.jsonl"), "line 1: it has", "bytes; expected",
            seconds=3, memory=300 * 2**20)  # fmt: skip


def test_a_manifest_of_more_lines_than_fit(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n" * 2**24)
    refused(lambda: open_dataset(tmp_path / "a.jsonl"), "lines; expected at most", **FEW_SECONDS)


@pytest.mark.parametrize("begin", [b"", b"\x89PNG"])
def test_a_picture_of_far_more_bytes_than_pixels(tmp_path, begin):
    (tmp_path / "a.txt").write_text("make it red")
    if begin:
        RED.save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("ab") as stream:
        stream.truncate(2**30)
    refused(lambda: open_dataset(tmp_path), "a.png", **FEW_SECONDS)


def saved(form, **options):
    buffer = io.BytesIO()
    Image.effect_noise((500, 500), 50).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind, content=b""):
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def scanned_again(times):
    """A progressive JPEG that goes through all of its pixels so often."""
    buffer = io.BytesIO()
    Image.new("L", (2000, 2000), 100).save(buffer, "JPEG", progressive=True)
    first, *scans = buffer.getvalue().split(b"\xff\xda")
    scans[1] = b"\xff\xda".join([scans[1]] * times)
    return b"\xff\xda".join([first, *scans])


PIECES = {
    "chunks": lambda: saved("PNG")[:33] + chunk(b"abCd") * 100_000 + saved("PNG")[33:],
    "chunks at the end": lambda: saved("PNG")[:-12] + chunk(b"abCd") * 100_000 + chunk(b"IEND"),
    "comments": lambda: saved("JPEG")[:2] + b"\xff\xfe\0\2" * 200_000 + saved("JPEG")[2:],
    "filling": lambda: saved("JPEG")[:2] + b"\xff" * 2**20 + saved("JPEG")[2:],
    "blocks": lambda: saved("GIF")[:781] + b"\x01" * 2**20,
    "scans": lambda: scanned_again(2000),
}


@pytest.mark.parametrize("made", PIECES.values(), ids=PIECES)
def test_a_picture_of_nothing_but_pieces(tmp_path, made):
    (tmp_path / "a.png").write_bytes(made())
    said = "too many pieces"
    refused(lambda: load_image(tmp_path / "a.png"), said, seconds=2)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_a_whole_picture_is_of_few_pieces(tmp_path, form):
    options = {"progressive": True} if form == "JPEG" else {}
    (tmp_path / "a.png").write_bytes(saved(form, **options))
    assert judged(lambda: load_image(tmp_path / "a.png"))[0] == "ok"

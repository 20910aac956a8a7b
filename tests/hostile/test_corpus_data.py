"""The smallest dataset, or name in one, for each fault that a second search found."""

import pytest
from mmada_parallel.mmp_core import files
from mmada_parallel.mmp_core.files import leads_out
from mmada_parallel.training.data.dataset import open_dataset

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

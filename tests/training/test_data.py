"""Datasets on disk: what is read of them, what is refused, and where the advice leads."""

import json
import shutil
import sys

import numpy as np
import pytest
from mmada_parallel.mmp_core import InputError
from mmada_parallel.tests.training.edit_folders import picture, write_item, write_pets
from mmada_parallel.training.data.dataset import open_dataset
from mmada_parallel.training.data.sources import files_of
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    return write_pets(tmp_path / "pets")


def reasons(dataset):
    return dict(dataset.skipped)


# ---- folders


def test_a_folder_is_read_in_the_order_that_people_count(folder):
    dataset = open_dataset(folder)
    assert [item.name for item in dataset] == ["Cat1", "cat2", "cat10"]
    generated, complete, plain = dataset
    assert generated.image is None and generated.instruction == "a red circle"
    assert complete.image.size == complete.target.size == (64, 48)
    assert complete.think == "the circle" and plain.think is None and plain.target is None
    assert plain.instruction == "make it blue\nleft of the square" and plain.image.size == (48, 64)
    assert dataset.skipped == () and len(dataset) == 3
    assert "pets: 3 item(s), 2 with a picture to edit, 1 to generate; 1 with" in dataset.report()


def test_every_format_and_spelling_is_found(tmp_path):
    for name in ("a.png", "b.JPG", "c.jpeg", "d.webp"):
        picture().save(tmp_path / name)
        (tmp_path / f"{name[0]}.txt").write_bytes("\ufeffmach es größer \r\n".encode())
    (tmp_path / ".hidden.txt").write_text("no item")
    (tmp_path / "notes.md").write_text("no item")
    write_item(tmp_path / "sub", "inside")
    dataset = open_dataset(tmp_path)
    assert [item.name for item in dataset] == ["a", "b", "c", "d"]
    assert {item.instruction for item in dataset} == {"mach es größer"}


def test_every_kind_of_bad_item_is_named_with_its_reason(tmp_path):
    write_item(tmp_path, "good")
    write_item(tmp_path, "blank", instruction=" \n")
    write_item(tmp_path, "small", size=(400, 20))
    write_item(tmp_path, "strip", size=(900, 100))
    write_item(tmp_path, "shapes", target=(64, 64))
    write_item(tmp_path, "damaged")
    content = (tmp_path / "damaged.png").read_bytes()
    (tmp_path / "damaged.png").write_bytes(content[: len(content) // 2])
    write_item(tmp_path, "none")
    (tmp_path / "none.png").write_text("not a picture")
    write_item(tmp_path, "latin")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    picture().save(tmp_path / "alone.png")
    picture().save(tmp_path / "lost.target.png")
    write_item(tmp_path, "twice")
    picture().save(tmp_path / "twice.webp")
    write_item(tmp_path, "bitmap", size=None)
    picture().save(tmp_path / "bitmap.bmp")
    dataset = open_dataset(tmp_path)
    assert [item.name for item in dataset] == ["good"]
    expected = {
        "blank": "blank.txt is empty",
        "small": "small.png is 400x20: expected sides of at least 32",
        "strip": "strip.png is 900x100: expected sides at most 8 times apart",
        "shapes": "its picture is 64x48 and its target 64x64: make both of one shape",
        "damaged": "damaged.png cannot be read as a picture",
        "none": "none.png is not a picture of a format that is read (PNG, JPEG, ",
        "latin": "latin.txt is not UTF-8",
        "alone": "alone.png has no alone.txt beside it",
        "lost": "lost.target.png has no lost.txt beside it",
        "twice": "it has both twice.png and twice.webp",
        "bitmap": "bitmap.bmp is not read: save it as .png, .jpg, .jpeg or .webp",
    }
    assert reasons(dataset).keys() == expected.keys()
    for name, beginning in expected.items():
        assert reasons(dataset)[name].startswith(beginning)
    assert "11 skipped:\n  alone: alone.png has no" in dataset.report()
    with pytest.raises(InputError, match="11 item.s. of .* cannot be used. alone: .* And 8 more"):
        open_dataset(tmp_path, bad_items="fail")


def test_a_truncated_photo_is_found_although_it_is_decoded_small(tmp_path):
    write_item(tmp_path, "good")
    write_item(tmp_path, "cut", size=None)
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg", quality=90)
    content = (tmp_path / "cut.jpg").read_bytes()
    assert [item.name for item in open_dataset(tmp_path)] == ["cut", "good"]
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) * 2 // 3])
    assert "truncated" in reasons(open_dataset(tmp_path))["cut"]


def test_a_turned_photo_has_its_upright_size(tmp_path):
    write_item(tmp_path, "turned", size=None, target=(48, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(64, 48).save(tmp_path / "turned.jpg", exif=exif)
    (item,) = open_dataset(tmp_path, bad_items="fail")
    assert item.image.size == item.image.read().size == (48, 64)


def test_what_holds_no_dataset_is_refused_with_advice(tmp_path):
    with pytest.raises(InputError, match="There is no dataset at .*absent"):
        open_dataset(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(InputError, match="There is no dataset at .*notes.txt"):
        open_dataset(tmp_path / "notes.txt")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="empty is empty: put name.png"):
        open_dataset(empty)
    write_item(empty / "10_cats", "a")
    with pytest.raises(InputError, match="did you mean its subfolder 10_cats"):
        open_dataset(empty)
    (empty / "data.jsonl").write_text("")
    with pytest.raises(InputError, match="did you mean its manifest data.jsonl"):
        open_dataset(empty)
    with pytest.raises(InputError, match="data.jsonl is empty: write a line"):
        open_dataset(empty / "data.jsonl")
    write_item(tmp_path / "bad", "a", instruction="")
    with pytest.raises(InputError, match="No item of bad can be used. a: a.txt is empty"):
        open_dataset(tmp_path / "bad")


def test_the_limit_counts_items_that_can_be_used_and_progress_those_read(tmp_path):
    for name in ("1", "2", "3", "4"):
        write_item(tmp_path, name, instruction="" if name == "1" else "make it red")
    told = []
    dataset = open_dataset(tmp_path, limit=2, callback=lambda *now: told.append(now))
    assert [item.name for item in dataset] == ["2", "3"] and reasons(dataset).keys() == {"1"}
    assert told == [(0, 4), (1, 4), (2, 4), (4, 4)]


# ---- manifests


def write_manifest(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "data.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    file.write_text(text, encoding="utf-8")
    return file


def test_a_manifest_keeps_its_order_and_finds_files_beside_it(tmp_path):
    picture().save(tmp_path / "b.png")
    (tmp_path / "wanted").mkdir()
    picture().save(tmp_path / "wanted" / "b.jpg")
    file = write_manifest(
        tmp_path,
        {"image": "b.png", "instruction": " make it red ", "target": "wanted/b.jpg", "think": "it"},
        "",
        {"image": None, "instruction": "a circle", "think": " "},
    )
    first, second = open_dataset(file, bad_items="fail")
    assert (first.name, first.instruction, first.think) == ("line 1", "make it red", "it")
    assert first.image.size == first.target.size == (64, 48)
    assert (second.name, second.image, second.think) == ("line 3", None, None)


def test_bad_lines_of_a_manifest_are_named_by_number(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.bmp").write_bytes(b"")
    file = write_manifest(
        tmp_path,
        {"instruction": "make it red"},
        "{not json}",
        "[1]",
        {"image": "a.png", "caption": "make it red", "weight": "2"},
        {"image": "absent.png", "instruction": "make it red"},
        {"image": "a.png"},
        {"image": "a.png", "instruction": 3},
        {"image": "a.bmp", "instruction": "make it red"},
        "[" * 100_000,
    )
    dataset = open_dataset(file)
    assert [item.name for item in dataset] == ["line 1"]
    found = reasons(dataset)
    assert found["line 2"].startswith("it is not JSON") and "not a JSON object" in found["line 3"]
    assert found["line 4"] == (
        "it has the unknown caption or weight: expected image, instruction, think, target or mask."
    )
    assert found["line 5"] == "image is 'absent.png', which is not there."
    assert found["line 6"] == "it has no instruction." and found["line 7"].startswith("its inst")
    assert found["line 8"].startswith("image is 'a.bmp': expected .png")
    assert "line 9" in found
    with pytest.raises(InputError, match="line 2: it is not JSON"):
        open_dataset(file, bad_items="fail")


@pytest.mark.parametrize("key", ["image", "target"])
@pytest.mark.parametrize(
    "name",
    ["../secret.png", "below/../../secret.png", "ABSOLUTE", "..\\secret.png", "C:secret.png"],
)
def test_a_manifest_does_not_lead_out_of_its_folder(key, name, tmp_path):
    """Whether a file elsewhere is there, is a picture, or what it shows: nothing is told of it."""
    place = tmp_path / "data"
    (place / "below").mkdir(parents=True)
    secret = tmp_path / "secret.png"
    picture().save(secret)
    name = str(secret) if name == "ABSOLUTE" else name
    file = write_manifest(place, {"instruction": "a circle"}, {key: name, "instruction": "a"})
    dataset = open_dataset(file)
    assert [item.name for item in dataset] == ["line 1"]
    told = reasons(dataset)["line 2"]
    assert told.startswith(f"{key} is {name!r}, which leads out of the manifest's folder")
    assert files_of(file) == [file]
    secret.unlink()
    assert reasons(open_dataset(file))["line 2"] == told


def test_a_link_below_the_manifest_is_followed(tmp_path):
    picture().save(tmp_path / "elsewhere.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    file = write_manifest(tmp_path / "data", {"image": "a.png", "instruction": "make it red"})
    assert open_dataset(file, bad_items="fail")[0].image.size == (64, 48)


def test_names_that_no_file_can_have_are_named(tmp_path):
    names = ("x" * 5000 + ".png", "a\0.png", "")
    lines = [{"image": name, "instruction": "a"} for name in names]
    file = write_manifest(tmp_path, {"instruction": "a circle"}, *lines)
    found = reasons(open_dataset(file))
    assert len(found) == 3 and all("which is not there" in reason for reason in found.values())
    assert files_of(file) == [file]


def test_the_files_that_a_dataset_reads_are_known(folder, tmp_path):
    assert {file.name for file in files_of(folder)} == {
        "Cat1.txt",
        "cat2.txt",
        "cat2.png",
        "cat2.think.txt",
        "cat2.target.png",
        "cat10.txt",
        "cat10.png",
    }
    file = write_manifest(folder, {"image": "cat2.png", "instruction": "a"}, "{", {"image": "no"})
    assert [f.name for f in files_of(file)] == ["data.jsonl", "cat2.png"]


# ---- Hugging Face datasets


@pytest.fixture
def save_dataset(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def save(**columns):
        types = {"image": datasets.Image(), "target": datasets.Image()}
        rows = datasets.Dataset.from_dict(columns)
        for name in types.keys() & columns.keys():
            if not isinstance(columns[name][0], str):
                rows = rows.cast_column(name, types[name])
        rows.save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"

    return save


def test_a_saved_dataset_gives_the_items_that_its_files_would(save_dataset, folder):
    written = open_dataset(folder)[1]
    pictures = [Image.open(folder / "cat2.png"), None]
    place = save_dataset(
        image=pictures,
        target=[Image.open(folder / "cat2.target.png"), None],
        id=[7, 8],
        instruction=["make it red", "a circle"],
        think=["the circle", None],
    )
    first, second = open_dataset(place, bad_items="fail")
    assert (first.name, first.instruction, first.think) == ("row 0", "make it red", "the circle")
    for own, other in ((first.image, written.image), (first.target, written.target)):
        assert own.size == other.size
        assert np.array_equal(np.asarray(own.read()), np.asarray(other.read()))
    assert (second.image, second.target, second.think) == (None, None, None)


def test_bad_rows_and_columns_of_a_saved_dataset_are_named(save_dataset, tmp_path):
    place = save_dataset(
        image=[picture(), picture(16, 16), picture()], instruction=["a circle", "a circle", None]
    )
    assert reasons(open_dataset(place)) == {
        "row 1": "its image is 16x16: expected sides of at least 32 pixels.",
        "row 2": "it has no instruction.",
    }


def test_a_cell_without_picture_costs_its_row_alone(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    import pyarrow as pa

    picture().save(tmp_path / "elsewhere.png")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [
        {"bytes": (tmp_path / "elsewhere.png").read_bytes(), "path": None},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": None},
        {"bytes": None, "path": str(tmp_path / "elsewhere.png")},
    ]
    table = pa.table({"instruction": ["a"] * 4, "image": pa.array(cells, type=kind)})
    features = datasets.Features(instruction=datasets.Value("string"), image=datasets.Image())
    place = tmp_path / "saved"
    table = table.cast(features.arrow_schema)
    datasets.Dataset(table.slice(0, 1)).save_to_disk(place)
    (stored,) = place.glob("*.arrow")
    with pa.ipc.new_stream(str(stored), table.schema) as writer:
        writer.write_table(table)
    dataset = open_dataset(place)
    assert [item.name for item in dataset] == ["row 0"]
    assert set(reasons(dataset)) == {"row 1", "row 2", "row 3"}
    assert all("its image holds no picture" in reason for reason in reasons(dataset).values())


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"prompt": ["a"]}, "has no column instruction: rename"),
        ({"image": ["a.png"], "instruction": ["a"]}, "column image of .* holds no pictures"),
        ({"instruction": [1]}, "column instruction of .* holds no text"),
    ],
)
def test_other_columns_are_refused(save_dataset, columns, message):
    with pytest.raises(InputError, match=message):
        open_dataset(save_dataset(**columns))


def test_of_several_splits_one_must_be_chosen(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = datasets.Dataset.from_dict({"instruction": ["a circle"]})
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="give the folder of one, test or train"):
        open_dataset(tmp_path / "saved")
    assert len(open_dataset(tmp_path / "saved" / "train")) == 1
    for split in ("test", "train"):
        shutil.rmtree(tmp_path / "saved" / split)
    with pytest.raises(InputError, match="saved has no folder of a split"):
        open_dataset(tmp_path / "saved")


def test_a_row_of_parquet_that_cannot_be_decoded_costs_itself_alone(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    texts = pa.StringArray.from_buffers(3, *pa.array([b"a", b"a", b"a\xff"]).buffers()[1:])
    cells = pa.array([None, {"bytes": "abc"}, None])
    parquet.write_table(pa.table({"instruction": texts, "image": cells}), tmp_path / "a.parquet")
    dataset = open_dataset(tmp_path / "a.parquet")
    assert [item.name for item in dataset] == ["row 0"]
    assert "its image holds no picture" in reasons(dataset)["row 1"]
    assert "it cannot be read (" in reasons(dataset)["row 2"]


def test_a_damaged_saved_dataset_and_a_missing_library_are_said(tmp_path, monkeypatch):
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{")
    if "datasets" in sys.modules or pytest.importorskip("datasets"):
        with pytest.raises(InputError, match="cannot be read as a dataset"):
            open_dataset(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="-m pip install datasets") as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)


# ---- fingerprints


def test_the_fingerprint_is_of_contents_not_of_places(folder, tmp_path):
    first = open_dataset(folder).fingerprint
    folder.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert open_dataset(moved).fingerprint == first
    (moved / "cat2.think.txt").write_text("the square")
    second = open_dataset(moved).fingerprint
    picture(64, 48, seed=3).save(moved / "cat2.target.png")
    third = open_dataset(moved).fingerprint
    assert len({first, second, third}) == 3

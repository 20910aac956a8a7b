"""Load Edit Dataset: what is offered, what comes out, and when it runs again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmada_parallel.demo.world import Task
from mmada_parallel.mmp_core import InputError
from mmada_parallel.training.data.dataset import tokenised
from mmada_parallel.views.examples import Example, dataset_sheet
from PIL import Image


@pytest.fixture
def input_folder(nodes, tmp_path):
    import folder_paths

    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_input_directory(before)


@pytest.fixture
def load(run_node, nodes, monkeypatch):
    monkeypatch.setattr(nodes.pictures.ui.ImageSaveHelper, "save_images", lambda *a, **k: [])

    def load_dataset(dataset, bad_items="skip", limit=0, **more):
        given = {"dataset": dataset, "bad_items": bad_items, "limit": limit}
        return run_node("LoadEditDataset", **given, **more)

    return load_dataset


def write_items(folder, *names, instruction="make it red"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (64, 48), (40 * number, 90, 120)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(instruction)


@pytest.fixture
def names(training_folders):
    return lambda: [*training_folders.generated_datasets(), *training_folders.stored_datasets()]


def test_datasets_of_the_input_folder_are_offered(names, input_folder):
    write_items(input_folder / "pets", "cat")
    write_items(input_folder / "more" / "deep", "dog")
    write_items(input_folder / ".hidden", "dog")
    (input_folder / "clipspace").mkdir()
    Image.new("RGB", (64, 48)).save(input_folder / "clipspace" / "only.png")
    (input_folder / "more" / "data.jsonl").write_text('{"instruction": "a circle"}')
    saved = input_folder / "saved"
    saved.mkdir()
    for name in ("dataset_info.json", "state.json"):
        (saved / name).write_text("{}")
    (input_folder / "loop").symlink_to(input_folder / "more")
    assert names() == [
        "demo (toy world)",
        "demo: open instructions",
        "demo: a new word",
        "picture book",
        "loop/data.jsonl",
        "loop/deep",
        "more/data.jsonl",
        "more/deep",
        "pets",
        "saved",
    ]


@pytest.mark.parametrize("name", ["../outside", "absent", "/etc", ""])
def test_what_is_not_offered_is_not_opened(load, input_folder, name):
    write_items(input_folder.parent / "outside", "a")
    with pytest.raises(InputError, match="is not in .*put it there"):
        load(name)


def test_a_folder_gives_items_preview_count_and_report(load, input_folder):
    write_items(input_folder / "pets", *(f"cat{i}" for i in range(1, 12)))
    write_items(input_folder / "pets", "dog", instruction="")
    result = load("pets")
    dataset, preview, count, report = result.result
    assert count == len(dataset) == 11 and dataset[1].name == "cat2"
    spread = [dataset[i * 11 // 8] for i in range(8)]
    shown = dataset_sheet(
        [Example(i.name, i.instruction, i.think, i.image.read(), None) for i in spread]
    )
    assert np.array_equal((preview[0] * 255).round().numpy(), np.asarray(shown))
    assert report.startswith("pets: 11 item(s)") and "dog: dog.txt is empty" in report
    assert result.ui["text"] == (report,)
    with pytest.raises(InputError, match="1 item.* of pets cannot be used. dog: dog.txt is empty"):
        load("pets", bad_items="stop")
    assert load("pets", limit=3).result[2] == 3


def test_a_single_item_is_shown_too(load, input_folder):
    write_items(input_folder / "pets", "cat")
    assert load("pets").result[1].shape[0] == 1


def test_the_toy_world_is_a_dataset(load):
    dataset, preview, count, report = load("demo (toy world)", limit=12).result
    assert count == 12 and preview.min() < 0.5
    assert all(isinstance(item.facts, Task) for item in dataset)
    assert report.startswith("toy world: 12 item(s)") and "12 with reasoning" in report
    assert load("demo (toy world)").result[2] == 256


def test_items_reach_training_as_cases(load, input_folder, model):
    write_items(input_folder / "pets", "cat")
    (case,) = tokenised(load("pets").result[0], model.model)
    assert case.source().size == (128, 96) and case.instruction == "make it red"


def test_the_node_runs_again_when_a_file_changed(nodes, input_folder):
    def fingerprint(name):
        return nodes.dataset.LoadEditDataset.fingerprint_inputs(name, bad_items="skip", limit=0)

    folder = input_folder / "pets"
    write_items(folder, "cat")
    first = fingerprint("pets")
    assert first == fingerprint("pets") != []
    (folder / "cat.txt").write_text("make it very red")
    second = fingerprint("pets")
    write_items(folder, "dog")
    assert len({json.dumps(found) for found in (first, second, fingerprint("pets"))}) == 3
    manifest = folder / "data.jsonl"
    manifest.write_text('{"image": "cat.png", "instruction": "a circle"}')
    listed = fingerprint("pets/data.jsonl")
    Image.new("RGB", (640, 480)).save(folder / "cat.png")
    assert listed != fingerprint("pets/data.jsonl") != []
    assert fingerprint("absent") == fingerprint("demo (toy world)") == []


@pytest.mark.parametrize("dataset", ["pets", "demo (toy world)", "demo: open instructions"])
def test_interruption_stops_between_items(load, input_folder, dataset):
    import comfy.model_management as management

    write_items(input_folder / "pets", "cat", "dog")
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        load(dataset)


def test_more_items_than_memory_holds_are_refused(load):
    with pytest.raises(InputError, match="2,000 items, used 1000 times .* lower repeats"):
        load("demo (toy world)", limit=2000, repeats=1000)
    with pytest.raises(InputError, match="100,001 items of toy world were asked for"):
        load("demo (toy world)", limit=100_001)


def collected(run_node, **changes):
    given = {"dataset": "mine", "instruction": "make it red"}
    return run_node("CollectDataset", **given, **changes)


def test_what_the_graph_made_becomes_a_dataset(run_node, load, input_folder, names):
    pictures = torch.rand(2, 64, 96, 3)
    output = collected(run_node, image=pictures, target=pictures.flip(2), think="red is warm")
    assert output.result == ("mine", 2) and "2 of 2 added" in output.ui["text"][0]
    again = collected(run_node, image=pictures, target=pictures.flip(2), think="red is warm")
    assert again.result == ("mine", 2) and "0 of 2 added" in again.ui["text"][0]
    assert collected(run_node, image=pictures[:1])[1] == 3  # without target: another item
    assert "mine" in names() and len(list(input_folder.glob("mine/make-it-red-*.txt"))) == 5
    dataset, _, count, _ = load("mine").result
    assert count == 3 and {item.instruction for item in dataset.items} == {"make it red"}
    (pair,) = {item.think for item in dataset.items} - {None}
    assert pair == "red is warm"
    item = next(item for item in dataset.items if item.think)
    assert np.array_equal(np.asarray(item.image.read()), np.asarray(item.target.read())[:, ::-1])


def test_a_target_of_nearly_the_same_shape_is_collected_as_it_is_read(run_node, load, input_folder):
    target = torch.rand(1, 344, 512, 3)
    assert collected(run_node, image=torch.rand(1, 667, 1000, 3), target=target, think="a")[1] == 1
    assert load("mine")[2] == 1


def test_what_makes_no_item_is_refused(run_node, input_folder):
    pictures = torch.rand(3, 64, 96, 3)
    with pytest.raises(InputError, match="must have the same shape"):
        collected(run_node, image=pictures, target=torch.rand(3, 64, 64, 3))
    with pytest.raises(InputError, match="3 images and 2 targets"):
        collected(run_node, image=pictures, target=pictures[:2])
    for name in ("../outside", "a/b", "con", ""):
        with pytest.raises(InputError, match="give a name"):
            run_node("CollectDataset", dataset=name, instruction="make it red", image=pictures)
    with pytest.raises(InputError, match="instruction is empty"):
        run_node("CollectDataset", dataset="mine", instruction=" ", image=pictures)
    assert not list(input_folder.iterdir())


def test_pictures_in_the_input_folder_are_not_looked_at_one_by_one(
    names, input_folder, monkeypatch
):
    """The list is made anew for every page: each of 10,000 pictures took 0.2 ms each time."""
    write_items(input_folder / "pets", *map(str, range(200)))
    for number in range(200):
        (input_folder / f"{number}.png").touch()
    looked, stat = [], Path.stat

    def counted(path, **options):
        looked.append(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", counted)
    assert names()[-1] == "pets" and len(looked) < 20


def test_a_folder_that_cannot_be_used_is_listed_with_the_reason(nodes, load, input_folder):
    write_items(input_folder / "good", "cat")
    for folder in ("photos", "clipspace"):
        (input_folder / folder).mkdir()
        Image.new("RGB", (64, 48)).save(input_folder / folder / "dog.jpg")
    (label,) = nodes.dataset.training_folders.unusable_datasets()
    assert label == "photos (unusable: pictures without a .txt)"
    offered = nodes.dataset.LoadEditDataset.define_schema().inputs[0].options
    assert offered[-1] == label and "good" in offered
    with pytest.raises(InputError, match="write what to change in dog.jpg into dog.txt"):
        load(label)

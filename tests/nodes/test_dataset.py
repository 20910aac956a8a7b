"""Load Edit Dataset: what is offered, what comes out, and when it runs again."""

import json

import numpy as np
import pytest
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

    def load_dataset(dataset, bad_items="skip", limit=0):
        return run_node("LoadEditDataset", dataset=dataset, bad_items=bad_items, limit=limit)

    return load_dataset


def write_items(folder, *names, instruction="make it red"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (64, 48), (40 * number, 90, 120)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(instruction)


@pytest.fixture
def names(nodes):
    folders = nodes.dataset.folders
    return lambda: [*folders.generated_datasets(), *folders.stored_datasets()]


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


def test_interruption_stops_between_items(load, input_folder):
    import comfy.model_management as management

    write_items(input_folder / "pets", "cat", "dog")
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        load("pets")

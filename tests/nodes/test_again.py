"""A node runs again when a file that it read has changed, or what it wrote is gone."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.training.rewards.clip import DEMO_CLIP
from mmada_parallel.training.rewards.registry import widget_values

ALONE, OF_A_CLIP = (widget_values(["mine"])[place] for place in (0, -1))


@pytest.fixture
def asked(classes):
    """``asked("Convert", **widgets)``: the fingerprint of node 7."""

    def ask(name, **widgets):
        clone = classes[f"MMaDAParallel{name}"].PREPARE_CLASS_CLONE(None)
        clone.hidden = SimpleNamespace(unique_id="7")
        return clone.fingerprint_inputs(**widgets)

    return ask


@pytest.fixture
def run(classes):
    def execute(node, **inputs):
        clone = classes[f"MMaDAParallel{node}"].PREPARE_CLASS_CLONE(None)
        clone.hidden = SimpleNamespace(unique_id="7")
        return clone.execute(**inputs)

    return execute


@pytest.fixture
def adapter(folders, tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"1")
    monkeypatch.setattr(folders, "adapter_files", lambda name: [file])
    return file


@pytest.mark.parametrize("name", ["SFTFinetune", "ParaRLFinetune", "PreferenceFinetune"])
def test_training_sees_the_adapter_that_it_begins_with(asked, adapter, name):
    widgets = {"run_name": "r", "existing_lora": "x.safetensors", "preferences": "p"}
    before = asked(name, **widgets)
    assert asked(name, **widgets) == before
    adapter.write_bytes(b"22")
    assert asked(name, **widgets) != before


@pytest.mark.parametrize(
    "name, widgets",
    [
        ("ScoreAlignment", {"clip": "mine"}),
        ("ParaRLFinetune", {"run_name": "r", "reward": OF_A_CLIP}),
        ("ParaRLFinetune", {"run_name": "r", "reward": ALONE, "more_rewards": "clip:mine=2"}),
    ],
)
def test_a_clip_that_changed_or_is_gone_is_seen(
    asked, folders, tmp_path, monkeypatch, name, widgets
):
    place = tmp_path / "clip"
    shutil.copytree(DEMO_CLIP, place)
    monkeypatch.setattr(folders, "clips", lambda: {"mine": place})
    found = [asked(name, **widgets)]
    os.utime(place / "open_clip_config.json", (0, 0))
    found.append(asked(name, **widgets))
    shutil.rmtree(place)
    found.append(asked(name, **widgets))
    assert len({repr(each) for each in found}) == 3


def test_a_conversion_whose_file_is_gone_is_made_again(asked, run, model_folder, adapter):
    widgets = {"checkpoint": "untrained", "image_tokenizer": "auto", "lora": "none"}
    path = model_folder / "again.safetensors"
    before = asked("ConvertCheckpoint", **widgets)
    run("ConvertCheckpoint", **widgets, quantize="none", name="again", strength=1.0)
    assert asked("ConvertCheckpoint", **widgets) == before  # taken from the cache
    path.unlink()
    after = asked("ConvertCheckpoint", **widgets)
    assert after != before and asked("ConvertCheckpoint", **widgets) == after
    adapter.write_bytes(b"22")
    assert asked("ConvertCheckpoint", **widgets) != after


def test_a_collected_dataset_that_is_gone_is_made_again(asked, run, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    before = asked("CollectDataset")
    picture = torch.rand(1, 64, 64, 3)
    run("CollectDataset", dataset="mine", instruction="make it red", image=picture)
    assert asked("CollectDataset") == before
    shutil.rmtree(tmp_path / "mine")
    assert asked("CollectDataset") != before

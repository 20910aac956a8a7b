"""The recipe of the picture book's checkpoint, small: it can be run in pieces."""

from dataclasses import replace

import pytest
import torch
from mmada_parallel.demo import train as shared
from mmada_parallel.demo.picture_book import train, vq
from mmada_parallel.demo.picture_book.scenes import code_count
from mmada_parallel.demo.picture_book.tasks import Task, is_held_out, task
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.mmp_core.instructions import unknown_words
from safetensors.torch import load_file

FEW = {"decay_steps": 1, "warmup_steps": 1, "batch_size": 2, "micro_batch": 2}
SETTINGS = replace(train.CPU, steps=2, **FEW)
SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 1, "mlp_hidden_size": 16}


@pytest.fixture(scope="module")
def small():
    """A recipe of the same parts, of sizes that train in a second."""
    tokenizer = vq.config() | {"block_out_channels": [8] * 6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vq, "config", lambda: tokenizer)
        patch.setattr(shared, "SIZES", SMALL)
        patch.setattr(train, "LAYERS", None)
        yield


def run(folder, check=lambda *_: None, parts=None, start=None):
    steps = {"encoder_steps": 2, "decoder_steps": 2, "pictures": 1}
    place = folder / "checkpoint"
    train.train(folder, place, parts or folder, SETTINGS, "cpu", check, start, **steps)
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def checkpoint(small, tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def test_a_run_in_pieces_ends_as_one_in_one_piece(checkpoint, small, tmp_path):
    pieces = written = 0
    while True:
        try:
            run(tmp_path, train.pausing(0))
        except train.Paused:
            pieces += 1
            written += (tmp_path / "checkpoint" / "model.safetensors").exists()
        else:
            break
    assert pieces >= 6 and written == SETTINGS.steps  # what there is can be tried after each
    for name in ("model.safetensors", "vqvae/diffusion_pytorch_model.safetensors"):
        once, often = (load_file(place / name) for place in (checkpoint, tmp_path / "checkpoint"))
        assert all(torch.equal(often[key], value) for key, value in once.items())


def test_another_run_goes_on_with_the_weights_and_the_tasks_that_follow(
    checkpoint, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(shared.SFTRun, "train", lambda self, callback: None)
    parts = checkpoint.parent
    begun = run(tmp_path, parts=parts, start=checkpoint)
    trained = SETTINGS.steps * SETTINGS.batch_size
    assert train.examples_of(checkpoint) == train.examples_of(begun) == trained
    before, after = (load_file(place / "model.safetensors") for place in (checkpoint, begun))
    assert all(torch.equal(after[key], value) for key, value in before.items())
    made = []

    def recorded(number, **how):
        made.append((number, how))
        return task(number, **how)

    monkeypatch.setattr(train, "task", recorded)
    train.BookCases(load_checkpoint(checkpoint).layout, trained)[0]
    assert made == [(trained, {"kinds": train.TAUGHT})]
    assert set(train.TAUGHT) == set(Task.kinds())


def test_the_checkpoint_loads_and_speaks_in_sentences(checkpoint):
    model = load_checkpoint(checkpoint, dtype=torch.float32)
    assert model.config["world"] == "picture-book"
    said = "there is a red house, a blue cat and a cloud at sea. the house goes away."
    ids = model.tokenizer(said)["input_ids"]
    assert model.layout.decode_text(torch.tensor([ids])) == [said]
    assert unknown_words(model.tokenizer, "Please paint the dragon pink.") == ["dragon", "pink."]


def test_every_code_has_a_vector_of_its_own():
    book = vq.codebook()
    assert book.shape == (code_count(), vq.WIDTH) and len(book.unique(dim=0)) == code_count()
    assert torch.cdist(book, book).add(torch.eye(len(book)) * 9).min() >= 2**0.5


def test_no_task_to_train_on_has_a_combination_that_is_held_out(checkpoint):
    cases = train.BookCases(load_checkpoint(checkpoint, dtype=torch.float32).layout)
    assert not any(is_held_out(cases[number].facts) for number in range(30))
    assert all(is_held_out(made) for made in train.recipe().guard)


@pytest.mark.parametrize("units", [True, False])
def test_a_processor_computes_in_the_dtype_that_it_is_faster_in(units, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units, raising=False)
    assert train.settings_for("cpu").bf16 is shared.recipe_for("cpu").bf16 is units

"""What items become: their words, their forms, what of them counts; files that belong together."""

import json
import os
import pickle
from unicodedata import normalize

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import InputError
from mmada_parallel.tests.training.edit_folders import picture, write_item
from mmada_parallel.tests.training.tiny_cases import tiny_model
from mmada_parallel.training.data.dataset import joined, open_dataset, tokenised
from mmada_parallel.training.data.settings import DataSettings
from mmada_parallel.training.data.variations import varied
from mmada_parallel.training.sft.batches import MicroBatch
from mmada_parallel.training.sft.loss import Condition, masked_losses
from PIL import ImageOps


def opened(folder, repeats=1, **settings):
    return open_dataset(folder, settings=DataSettings(**settings), repeats=repeats)


def write_edit(folder, name="cat", instruction="make it red", box=(0, 0, 16, 16), **more):
    """An edit of a part of a picture; ``box``: of what changes, of 64x48 pixels."""
    write_item(folder, name, instruction=instruction, think="the circle", target=(64, 48), **more)
    after = picture(64, 48, seed=sum(map(ord, name)))
    after.paste((255, 0, 255), box)
    after.save(folder / f"{name}.target.png")


@pytest.mark.parametrize(
    "settings, wanted",
    [
        ({}, ["make it red"] * 2),
        ({"trigger_word": "sks"}, ["sks make it red"] * 2),
        ({"template": "please {text}|{text} now"}, ["please make it red", "make it red now"]),
        ({"template": "in {trigger} style: {text}", "trigger_word": "sks"},
         ["in sks style: make it red"] * 2),
    ],
)  # fmt: skip
def test_instructions_are_put_into_words(settings, wanted, tmp_path):
    write_item(tmp_path, "cat")
    assert [item.instruction for item in opened(tmp_path, repeats=2, **settings)] == wanted


def test_a_template_without_a_place_for_the_instruction_is_told():
    with pytest.raises(InputError, match=r"write that where the instruction goes"):
        DataSettings(template="{text} now|a photo")


def test_captions_ask_for_their_picture(tmp_path):
    write_item(tmp_path, "cat", instruction="a red cat")
    write_item(tmp_path, "dog", instruction="a dog", size=None)
    dataset = opened(tmp_path, captions=True)
    (item,) = dataset.items
    assert (
        item.image is None
        and item.target.read().tobytes() == picture(seed=sum(map(ord, "cat"))).tobytes()
    )
    assert item.think == "a red cat"
    assert dataset.skipped == (("dog", "it has no picture for its description."),)


def test_items_are_mirrored_where_their_words_allow_it(tmp_path):
    write_edit(tmp_path)
    write_edit(tmp_path, "dog", instruction="move it to the left")
    write_edit(tmp_path, "sign", instruction='write "hello" on it')
    plain, mirrored, *others = opened(tmp_path, mirrored=True)
    assert [item.name for item in others] == ["dog", "sign"]
    assert mirrored.name == "cat (mirrored)" and mirrored.origin == plain.origin
    for name in ("image", "target"):
        before, after = getattr(plain, name), getattr(mirrored, name)
        assert ImageOps.mirror(before.read()).tobytes() == after.read().tobytes()
        assert before.digest != after.digest


def test_it_may_be_interrupted_before_each_item_whose_pictures_are_compared(tmp_path):
    for name in ("cat", "dog", "emu"):
        write_edit(tmp_path, name)
    dataset, called = opened(tmp_path, outside_weight=0.5), []
    varied(dataset.items, DataSettings(crops=1), 1, lambda done, total: called.append(done))
    assert called == [0, 1, 2]

    def count(callback):
        tokenised(dataset, tiny_model(tmp_path / "model"), need_target=True, callback=callback)

    called.clear()
    count(lambda done, total: called.append((done, total)))
    assert called.count((0, 3)) >= 3 and called.count((6, 6)) >= 3


def test_crops_hold_what_an_edit_changes(tmp_path):
    write_edit(tmp_path, box=(40, 24, 56, 40))
    write_edit(tmp_path, "dog", instruction="make the background blue")
    whole, *parts, other = opened(tmp_path, crops=8)
    assert len(parts) == 8 and other.name == "dog" and len({p.image.size for p in parts}) > 3
    for part in parts:
        target = np.asarray(part.target.read())
        assert part.origin == whole.origin and target.shape[:2][::-1] == part.target.size
        assert (target == (255, 0, 255)).all(axis=-1).sum() == 16 * 16
        ratio = part.target.size[0] / part.target.size[1]
        assert ratio == pytest.approx(64 / 48, rel=0.05)


def test_all_forms_can_be_sent_to_the_processes_that_read_them(tmp_path):
    write_edit(tmp_path)
    items = opened(tmp_path, mirrored=True, crops=2).items
    for item, sent in zip(items, pickle.loads(pickle.dumps(items)), strict=True):
        assert sent.target.size == item.target.size == sent.target.read().size
        assert sent.image.read().tobytes() == item.image.read().tobytes()
    assert len({item.target.digest for item in items}) == 4


def test_several_datasets_are_one_with_repeats(tmp_path):
    write_item(tmp_path / "a", "cat")
    write_item(tmp_path / "b", "cat", instruction="make it blue")
    (tmp_path / "b" / "dog.txt").write_text("")
    both = joined([opened(tmp_path / "a", repeats=3), opened(tmp_path / "b")])
    assert both.place == "a + b" and [item.name for item in both] == ["a/cat"] * 3 + ["b/cat"]
    assert both.skipped[0][0] == "b/dog"


@pytest.fixture
def model(tmp_path):
    return tiny_model(tmp_path / "model")


def weights(model, folder, **settings):
    return tokenised(opened(folder, **settings), model, need_target=True)


def test_what_an_edit_changes_counts_and_the_rest_by_its_weight(model, tmp_path):
    write_edit(tmp_path / "a", box=(0, 0, 8, 8))
    (case,) = weights(model, tmp_path / "a", outside_weight=0.25)
    grid = case.image_weight[0]
    assert grid[0, 0] == 1 and grid[-1, -1] == 0.25 and set(grid.flatten().tolist()) == {0.25, 1}
    (plain,) = weights(model, tmp_path / "a")
    assert plain.image_weight is None


def test_a_mask_says_what_counts(model, tmp_path):
    write_edit(tmp_path / "a", box=(0, 0, 8, 8))
    mask = picture(64, 48)
    mask.paste("black", (0, 0, 64, 48))
    mask.save(tmp_path / "a" / "cat.mask.png")
    with pytest.raises(InputError, match="its mask is black all over"):
        weights(model, tmp_path / "a", outside_weight=0.0)
    mask.paste("white", (56, 40, 64, 48))
    mask.save(tmp_path / "a" / "cat.mask.png")
    (case,) = weights(model, tmp_path / "a", outside_weight=0.0)
    assert case.image_weight[0, -1, -1] == 1 and case.image_weight[0, 0, 0] == 0
    assert opened(tmp_path / "a")[0].mask and len(opened(tmp_path / "a")) == 1


def test_an_edit_that_changes_nothing_is_named(model, tmp_path):
    write_item(tmp_path / "a", "cat", think="the circle", target=(64, 48))
    with pytest.raises(InputError, match="its picture and its target do not differ"):
        weights(model, tmp_path / "a", outside_weight=0.0)


def test_at_weight_0_nothing_outside_has_a_gradient(model, tmp_path):
    write_edit(tmp_path / "a", box=(0, 0, 8, 8))
    (case,) = weights(model, tmp_path / "a", outside_weight=0.0)
    target = case.target
    everything = torch.ones(1, target.image[0].numel(), dtype=torch.bool)
    batch = MicroBatch(
        case.prompt,
        target,
        case.image_weight,
        Condition(),
        torch.ones_like(target.text, dtype=torch.bool),
        everything,
    )
    seen, logits = [], model.transformer.logits

    def recorded(hidden, *args, **kwargs):
        hidden = hidden.detach().requires_grad_()
        seen.append(hidden)
        return logits(hidden, *args, **kwargs)

    model.transformer.logits = recorded
    with torch.enable_grad():
        masked_losses(model.transformer, model.layout, batch).image.backward()
    gradients = [hidden.grad for hidden in seen if hidden.grad is not None]
    rows = torch.cat([g.reshape(-1, g.shape[-1]) for g in gradients]).abs().sum(dim=1)
    inside = case.image_weight.flatten() > 0
    rows = rows[-len(inside) :]
    assert (rows[inside] > 0).all() and (rows[~inside] == 0).all()


def linked(folder):
    os.symlink(folder / "gone.png", folder / "cat.png")
    return "cat.png is a link to nothing"


def link_loop(folder):
    os.symlink(folder / "cat.png", folder / "cat.png")
    return "cat.png is a link to nothing"


def linked_text(folder):
    picture().save(folder / "cat.png")
    (folder / "cat.txt").unlink()
    os.symlink(folder / "gone.txt", folder / "cat.txt")
    return "cat.txt is a link to nothing"


def pipe(folder):
    os.mkfifo(folder / "cat.png")
    return "cat.png is not a regular file"


@pytest.mark.parametrize("break_it", [linked, link_loop, linked_text, pipe])
def test_a_file_that_is_not_there_is_named_and_its_text_is_not_used_alone(break_it, tmp_path):
    write_item(tmp_path, "cat", size=None)
    write_item(tmp_path, "dog")
    told = break_it(tmp_path)
    dataset = open_dataset(tmp_path)
    assert [item.name for item in dataset] == ["dog"]
    ((name, why),) = dataset.skipped
    assert name == "cat" and why.startswith(told)


@pytest.mark.parametrize(
    "first, second",
    [
        (normalize("NFD", "Café"), normalize("NFC", "Café")),
        (normalize("NFC", "한글"), normalize("NFD", "한글")),
        ("Cat", "cat"),
        ("STRASSE", "straße"),
    ],
)
def test_names_of_other_forms_belong_together(first, second, tmp_path):
    picture().save(tmp_path / f"{first}.png")
    (tmp_path / f"{second}.txt").write_text("make it red")
    picture().save(tmp_path / f"{first}.target.PNG")
    (item,) = open_dataset(tmp_path)
    assert item.name == normalize("NFC", second) and item.image and item.target


def test_names_that_leave_open_what_belongs_to_what_are_told(tmp_path):
    picture().save(tmp_path / "CAT.png")
    for name in ("Cat", "cat"):
        (tmp_path / f"{name}.txt").write_text("make it red")
    write_item(tmp_path, "dog")
    write_item(tmp_path, "Dog")
    dataset = open_dataset(tmp_path)
    assert sorted(item.name for item in dataset) == ["Dog", "dog"]
    told = dict(dataset.skipped)
    assert "has no CAT.txt" in told["CAT"] and "differ by case alone" in told["cat"]
    assert len(told) == 3


def parquet_rows():
    rows = []
    for name in ("cat", "dog"):
        place = f"/tmp/{name}.png"
        stored = {"bytes": as_png(name), "path": place}
        rows.append({"instruction": f"make the {name} red", "image": stored, "width": 3})
    return rows


def as_png(name):
    from io import BytesIO

    file = BytesIO()
    picture(seed=sum(map(ord, name))).save(file, "PNG")
    return file.getvalue()


def test_a_folder_of_parquet_files_is_used(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for number, rows in enumerate((parquet_rows()[:1], parquet_rows()[1:])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"train-{number}.parquet")
    (tmp_path / "README.txt").write_text("a dataset")
    dataset = open_dataset(tmp_path)
    assert [item.instruction for item in dataset] == ["make the cat red", "make the dog red"]
    assert dataset[1].image.read().tobytes() == picture(seed=sum(map(ord, "dog"))).tobytes()
    assert len(open_dataset(tmp_path / "train-0.parquet")) == 1


def test_parquet_that_cannot_be_used_is_told(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "a" / "train.parquet"
    file.parent.mkdir()
    parquet.write_table(pyarrow.table({"caption": ["a cat"]}), file)
    with pytest.raises(InputError, match="has no column instruction, but caption: rename"):
        open_dataset(tmp_path / "a")
    write_item(tmp_path / "a", "cat")
    dataset = open_dataset(tmp_path / "a")
    assert [item.name for item in dataset] == ["cat"]
    assert "train.parquet is not read beside other items" in dict(dataset.skipped)["train"]
    file.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        open_dataset(file)
    bad = {"instruction": [3, 4], "image": ["a.png", None]}
    parquet.write_table(pyarrow.table(bad), file)
    with pytest.raises(InputError, match="its instruction is not text"):
        open_dataset(file)


def test_a_manifest_may_name_a_mask(tmp_path):
    write_edit(tmp_path)
    picture(64, 48).save(tmp_path / "m.png")
    line = {"image": "cat.png", "target": "cat.target.png", "mask": "m.png", "instruction": "x"}
    (tmp_path / "all.jsonl").write_text(json.dumps(line))
    assert open_dataset(tmp_path / "all.jsonl")[0].mask
    picture(48, 64).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="its mask is 48x64 and its target 64x48"):
        open_dataset(tmp_path / "all.jsonl")

"""Training and its data can be interrupted between any few of many items."""

import json
from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import InputError, interruption
from mmada_parallel.tests.training.tiny_cases import QUICK, brightness, cases, new_run, tiny_model
from mmada_parallel.training.data import items
from mmada_parallel.training.data.apart import set_apart
from mmada_parallel.training.data.dataset import EditDataset, joined, open_dataset, tokenised
from mmada_parallel.training.data.items import Item
from mmada_parallel.training.data.sources import KINDS, files_of
from mmada_parallel.training.loop.folder import RunFolder
from mmada_parallel.training.loop.run import fingerprint
from mmada_parallel.training.pararl.rollout import Group, roll_out
from mmada_parallel.training.pararl.scores import score
from mmada_parallel.training.sft.batches import Windows
from mmada_parallel.training.sft.settings import SFTSettings
from PIL import Image

MANY = 12


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def every(monkeypatch):
    monkeypatch.setattr(items, "EVERY", 1)


@pytest.fixture
def told():
    return []


@pytest.fixture
def tell(told):
    return lambda *now: told.append(now)


def many(place):
    return EditDataset(place, tuple(Item(f"{n}", "draw a red star") for n in range(MANY)))


def test_joining_datasets_counts_their_items(told, tell):
    joined([many("a"), many("b")], tell)
    assert len(told) >= 2 * MANY


@pytest.mark.parametrize("kind", ["manifest", "folder", "parquet"])
def test_items_are_counted_before_the_first_is_read(kind, told, tell, tmp_path):
    path = tmp_path
    if kind == "folder":
        for number in range(MANY):
            (tmp_path / f"{number}.txt").write_text("draw a red star")
    elif kind == "manifest":
        path = tmp_path / "m.jsonl"
        path.write_text("\n".join([json.dumps({"instruction": "a"})] * MANY))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.table({"instruction": ["a"] * MANY}), tmp_path / "a.parquet")
    (chosen, *_) = (each for each in KINDS if each.fits(path))
    assert len(chosen.items(path, tell)) == MANY
    assert len(told) >= MANY
    del told[:]
    open_dataset(path, callback=tell)
    assert len(told) >= 2 * MANY


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16"])
def test_a_large_picture_of_a_dataset_is_asked_about_while_it_is_read(
    mode, told, tmp_path, monkeypatch
):
    monkeypatch.setattr(interruption, "EVERY", 0.0)
    side = 2400  # larger than what is converted in one piece
    picture = Image.new("L" if mode == "P" else mode, (side, side))
    (picture.convert(mode) if mode == "P" else picture).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("draw a red star")

    def stop_at(count):
        def ask(*now):
            told.append(now)
            if len(told) == count:
                raise Stopped

        return ask

    dataset = open_dataset(tmp_path, callback=stop_at(None))
    opened = len(told)
    assert opened > 4
    for count in (2, opened // 2):
        del told[:]
        with pytest.raises(Stopped):
            open_dataset(tmp_path, callback=stop_at(count))
    model = tiny_model(tmp_path / "model")
    del told[:]
    tokenised(dataset, model, need_target=False, callback=stop_at(None))
    encoded = len(told)
    assert encoded > 6
    for count in range(2, encoded, 7):
        del told[:]
        with pytest.raises(Stopped):
            tokenised(dataset, model, need_target=False, callback=stop_at(count))


def test_reasons_of_what_cannot_be_used_are_counted(told, tell, tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join([json.dumps({"instruction": "a", "image": "b.png"})] * MANY))
    with pytest.raises(InputError, match=f"for {MANY - 1} more"):
        open_dataset(path, callback=tell)
    assert len(told) >= 3 * MANY
    del told[:]
    skipped = tuple((f"line {n}", "image is missing") for n in range(MANY))
    report = replace(many("a"), skipped=skipped).report(tell)
    assert f"{MANY} skipped" in report and len(told) == MANY


def test_the_files_of_a_manifest_are_counted(told, tell, tmp_path):
    path = tmp_path / "m.jsonl"
    lines = [json.dumps({"image": f"{n}.png", "instruction": "a"}) for n in range(MANY)]
    path.write_text("\n".join(lines))
    files_of(path, tell)
    assert len(told) >= 2 * MANY


def test_the_lines_of_a_log_are_counted(told, tell, tmp_path):
    folder = RunFolder(tmp_path)
    for step in range(MANY):
        folder.log({"step": step})
    folder.lines(tell)
    assert len(told) >= MANY
    folder.forget_after(MANY, tell)
    assert len(told) >= 3 * MANY
    folder.close()


def test_all_cases_are_counted_where_a_run_looks_at_all(told, tell, tmp_path):
    given = cases(tiny_model(tmp_path / "model"), MANY)
    set_apart(given, 0.5, (), tell)
    assert len(told) >= MANY
    fingerprint(given, tell)
    assert len(told) >= 2 * MANY
    del told[:]
    run = new_run(tiny_model(tmp_path / "other"), tmp_path / "run", own=given, callback=tell)
    assert run.data and len(told) >= 2 * MANY


def test_the_cases_of_a_step_are_counted(told, tell, dataset):
    settings = SFTSettings(batch_size=MANY, window=2)
    assert Windows(dataset, settings, callback=tell)[0]
    assert len(told) >= 2 * MANY


@pytest.mark.parametrize("after", [0, MANY // 2])
def test_an_interruption_while_a_batch_is_collected_skips_nothing(
    after, from_nothing, dataset, tmp_path
):
    settings = SFTSettings(steps=2, batch_size=MANY, micro_batch=MANY, checkpoint_every=2)
    whole = from_nothing(tmp_path / "whole", settings)
    whole.train()

    def stop(phase, done, total):
        if phase == "collecting" and done == after:
            raise Stopped

    run = from_nothing(tmp_path / "run", settings)
    with pytest.raises(Stopped):
        run.train(progress=stop)
    run.train()
    wanted = whole.policy.state_dict()
    assert all(torch.equal(v, wanted[n]) for n, v in run.policy.state_dict().items())


def test_a_reward_is_counted_by_the_pairs_that_it_looks_at(told, tell, tmp_path):
    model = tiny_model(tmp_path)
    (case,) = cases(model, 1)
    rolled = roll_out(model, [Group.of(0, case, 4, "a")], QUICK.sampler, drawn=2, micro_batch=4)
    scores = score(model, [rolled], brightness, QUICK, tell)
    looked = {done for phase, done, _ in told if phase == "rewards"}
    assert looked >= set(range(scores.calls))
    without = score(model, [rolled], brightness, QUICK)
    assert all(map(torch.equal, scores.rewards, without.rewards))

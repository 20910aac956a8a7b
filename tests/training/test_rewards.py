"""Rewards: CLIP, sums of several, what a user's own may give, names for the command line."""

import json
import re
import runpy
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.items import world_dataset
from mmada_parallel.demo.register import register
from mmada_parallel.demo.render import render
from mmada_parallel.mmp_core import CheckpointError, InputError
from mmada_parallel.mmp_core.state import Prompt, TokenState
from mmada_parallel.tests.hosts import PACK_ROOT
from mmada_parallel.tests.training.tiny_cases import tiny_model
from mmada_parallel.tests.training.tiny_clip import write_clip
from mmada_parallel.training.cases import Case, Pair
from mmada_parallel.training.data.dataset import EditDataset, open_dataset, tokenised
from mmada_parallel.training.data.items import Item
from mmada_parallel.training.data.registry import GENERATED
from mmada_parallel.training.rewards import registry
from mmada_parallel.training.rewards.clip import DEMO_CLIP, ClipReward, ClipScorer, clip_folder
from mmada_parallel.training.rewards.clip_files import is_clip
from mmada_parallel.training.rewards.consistency import ConsistencyReward, kept_cells
from mmada_parallel.training.rewards.registry import (
    RewardKind,
    from_widget,
    specs_in,
    weighted_reward,
    widget_values,
)
from mmada_parallel.training.rewards.weighted import Weighted, checked
from PIL import Image, ImageChops
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

TASKS = [world.task(HELD_OUT + i) for i in range(4)]


def pair(number, text=None, shown=None):
    ids = torch.zeros(1, 1, dtype=torch.int64)
    prompt = Prompt(ids, ids, None, TokenState.masked(1, 1, (1, 1)))
    task = TASKS[number]
    text = task.sentence if text is None else text
    picture = render(TASKS[number if shown is None else shown].after)
    return Pair(Case(f"task {number}", prompt, task.instruction, None), text, text, picture, 1.0)


PAIRS = [pair(i) for i in range(4)]


def load_clip(place):
    return ClipScorer(clip_folder(place))


def lengths(pairs):
    return [len(p.text) for p in pairs]


def test_clip_rewards_text_against_its_own_picture():
    pairs = [pair(0), pair(0, shown=1), pair(0, text=""), pair(1, text=TASKS[1].sentence * 20)]
    rewards = ClipReward(load_clip("demo"))(pairs)
    expected = ClipScorer(DEMO_CLIP).score([p.text for p in pairs], [p.picture for p in pairs])
    assert torch.equal(rewards, expected) and rewards.dtype == torch.float32
    assert rewards[2] == 0 and rewards[0] != rewards[1] and rewards[3] != 0


def test_a_clip_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="open_clip_config.json is missing"):
        weighted_reward([f"clip:{tmp_path}"], load_clip, world_dataset(1))
    with pytest.raises(InputError, match="clip:FOLDER, or clip:demo"):
        weighted_reward(["clip"], load_clip, world_dataset(1))


def test_a_sum_weighs_its_parts_and_tells_their_means():
    def progress(pairs):
        return np.array([p.progress for p in pairs])

    total = Weighted([(lengths, 0.5), (progress, -2.0)])
    expected = torch.tensor([0.5 * len(p.text) - 2.0 for p in PAIRS])
    assert torch.allclose(total(PAIRS[:1]), expected[:1])
    assert torch.allclose(total(PAIRS[1:]), expected[1:])
    assert total.take_sums() == ({"lengths": sum(lengths(PAIRS)), "progress": 4.0}, 4)
    nothing = ({"lengths": 0.0, "progress": 0.0}, 0)
    assert total.take_sums() == nothing
    assert total([]).shape == (0,) and total.take_sums() == nothing
    total(PAIRS)
    assert total.take_sums(1) == ({"lengths": lengths(PAIRS[:1])[0], "progress": 1.0}, 1)
    assert total.take_sums() == nothing


def test_equal_names_are_numbered_and_sums_nest():
    inner = Weighted([(lengths, 1.0), (lengths, 2.0)])
    outer = Weighted([(inner, 2.0)])
    assert torch.equal(outer(PAIRS), 6.0 * torch.tensor(lengths(PAIRS)).float())
    assert inner.take_sums()[0].keys() == {"lengths", "lengths 2"}
    assert outer.take_sums()[0].keys() == {"weighted"}


def test_a_reward_of_the_users_own_may_give_any_numbers():
    doubled = torch.tensor(lengths(PAIRS), dtype=torch.float64, requires_grad=True)
    for given in (lengths, lambda p: np.array(lengths(p)), lambda p: doubled):
        values = checked(given, PAIRS, "mine")
        assert values.tolist() == lengths(PAIRS)
        assert values.dtype == torch.float32 and not values.requires_grad


@pytest.mark.parametrize(
    "gives, message",
    [
        ([1.0] * 3, r"The reward mine gave values of shape \(3,\) for 4 pairs"),
        (1.0, r"gave values of shape \(\) for 4 pairs"),
        ([[1.0]] * 4, r"shape \(4, 1\)"),
        ([0.0, float("nan"), 0.0, 0.0], "The reward mine gave nan for task 1"),
        ([0.0, 0.0, float("inf"), 0.0], "gave inf for task 2"),
        ("many", "The reward mine failed: "),
        (None, "The reward mine failed: "),
    ],
)
def test_what_is_no_reward_is_refused_by_name(gives, message):
    def mine(pairs):
        return gives

    with pytest.raises(InputError, match=message):
        Weighted([(mine, 1.0)])(PAIRS)


def test_an_error_in_a_users_reward_names_it_and_keeps_its_cause():
    class Mine:
        name = "palette"

        def __call__(self, pairs):
            return [p.no_such_field for p in pairs]

    with pytest.raises(InputError, match="The reward palette failed: AttributeError") as caught:
        Weighted([(Mine(), 1.0)])(PAIRS)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_sums_need_parts_with_weights():
    with pytest.raises(InputError, match="There is no reward"):
        Weighted([])
    with pytest.raises(InputError, match="weight of lengths is nan"):
        Weighted([(lengths, float("nan"))])


@pytest.fixture
def two_rewards(monkeypatch):
    """A registry of two, and what they were made of."""
    made = []

    def kind(name, **details):
        def make(place, load_clip):
            made.append((name, place))
            return lengths

        return RewardKind(name, f"{name} (label)", f"what {name} rewards", make, **details)

    kinds = [kind("clip", place="FOLDER"), kind("checker", check=refuse_empty)]
    monkeypatch.setattr(registry, "REWARDS", {each.name: each for each in kinds})
    return made


def refuse_empty(dataset):
    if not dataset:
        raise InputError("there is nothing to judge.")


def test_rewards_are_named_as_on_a_command_line(two_rewards):
    specs = ["clip:models/a=b=0.25", "clip:C:\\models=x", "checker=-1e-1", "checker"]
    total = weighted_reward(specs, load_clip, world_dataset(1))
    assert two_rewards == [
        ("clip", "models/a=b"),
        ("clip", "C:\\models=x"),
        ("checker", ""),
        ("checker", ""),
    ]
    weights = 0.25 + 1.0 - 0.1 + 1.0
    assert torch.allclose(total(PAIRS), weights * torch.tensor(lengths(PAIRS)).float())
    with pytest.raises(InputError, match="no reward 'beauty': expected checker or clip:FOLDER"):
        weighted_reward(["beauty"], load_clip, world_dataset(1))
    with pytest.raises(InputError, match="nothing to judge"):
        weighted_reward(["checker"], load_clip, world_dataset(0))


def test_rewards_are_named_as_in_a_widget(two_rewards):
    offered = ["checker (label)", "clip (label): demo", "clip (label): a: b"]
    assert widget_values(["demo", "a: b"]) == offered
    found = [(kind.name, place) for kind, place in map(from_widget, offered)]
    assert found == [("checker", ""), ("clip", "demo"), ("clip", "a: b")]
    with pytest.raises(InputError, match="no reward 'clip': choose another"):
        from_widget("clip")


def test_the_toy_world_registers_its_reward_and_its_dataset():
    register()
    kind, place = from_widget("checker (toy world)")
    demo = GENERATED["demo"]
    assert (kind.name, place, demo.reward) == ("checker", "", "checker")
    assert demo.label == "demo (toy world)"
    kind.check(demo.make(2))
    with pytest.raises(InputError, match="cat of pets is not a task of the toy world"):
        kind.check(EditDataset("pets", (Item("cat", "make it blue"),)))
    clip = weighted_reward(["clip:demo"], load_clip, demo.make(1))
    assert torch.equal(clip(PAIRS), ClipReward(load_clip("demo"))(PAIRS))


def test_a_list_in_a_widget_is_read_as_a_command_line_would_be():
    text = " consistency = 0.5, clip: my clip=2\nchecker ,, consistency:0.25\n"
    specs = ["consistency=0.5", "clip:my clip=2", "checker", "consistency:0.25"]
    assert specs_in(text) == specs and specs_in(" \n") == []


def edit(number, shown=None, **details):
    """Task ``number`` with its input, answered with the result of ``shown`` or a picture."""
    task = world.task(number)
    before = torch.tensor([task.before.codes()])
    prompt = Prompt(*[torch.zeros(1, 1, dtype=torch.int64)] * 2, before, blank(before))
    case = Case("edit", prompt, task.instruction, partial(render, task.before), **details)
    picture = shown if isinstance(shown, Image.Image) else render(task.after)
    return Pair(case, "", "", picture, 1.0)


def blank(before):
    return TokenState(torch.zeros(1, 1, dtype=torch.int64), torch.full_like(before, -1))


def edit_number(kind):
    return next(n for n in range(200) if world.task(n).kind == kind)


def painted(picture, cells, side):
    """``picture`` with cells, given as (row, column), inverted."""
    copy = picture.copy()
    for row, column in cells:
        box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
        copy.paste(ImageChops.invert(picture.crop(box)), box)
    return copy


def test_consistency_looks_outside_what_may_change_alone():
    number = edit_number("remove")
    task = world.task(number)
    after = torch.tensor([task.after.codes()])
    target = TokenState(torch.zeros(1, 1, dtype=torch.int64), after)
    rows, columns = np.nonzero(np.asarray(task.before.codes()) != np.asarray(task.after.codes()))
    changed = (int(rows[0]), int(columns[0]))
    others = [(r, c) for r in range(4) for c in range(4) if (r, c) != changed]
    side = render(task.before).width // 4
    reward = ConsistencyReward()
    right = edit(number, target=target)
    one, all_others = (
        edit(number, painted(render(task.after), cells, side), target=target)
        for cells in (others[:1], others)
    )
    untouched = edit(number, render(task.before), target=target)
    scores = reward([right, one, all_others, untouched])
    assert scores[0] == 1 and scores[3] == 1 and scores[2] < 0.2
    lost = 1 - float(kept_cells(render(task.before), one.picture, (4, 4))[others[0]])
    assert lost > 0.5 and scores[1] == pytest.approx(1 - lost / 15, abs=1e-5)
    free = torch.zeros(1, 4, 4, dtype=torch.bool)
    free[0, others[0][0], others[0][1]] = free[0, changed[0], changed[1]] = True
    masked = edit(number, one.picture, target=target, changes=lambda: free)
    assert reward([masked])[0] == 1


def test_consistency_lets_a_share_change_where_nothing_says_what():
    number = edit_number("remove")
    side = render(world.task(number).before).width // 4
    before = render(world.task(number).before)
    cells = [(r, c) for r in range(4) for c in range(4)]
    pairs = [edit(number, painted(before, cells[:n], side)) for n in (0, 4, 5, 16)]
    scores = ConsistencyReward(0.25)(pairs)
    assert scores[:2].tolist() == [1, 1] and 0.85 < scores[2] < 1 and scores[3] < 0.2
    assert ConsistencyReward(0.0)(pairs)[1] < 0.9
    assert ConsistencyReward()([pair(0)]).tolist() == [1]  # nothing to edit
    for share in ("1", "-0.1", "nan", "many"):
        with pytest.raises(InputError, match="share of the picture"):
            weighted_reward(["clip:demo", f"consistency:{share}"], load_clip, world_dataset(8))


def test_consistency_needs_edits_and_company():
    with pytest.raises(InputError, match="alone asks for nothing to be changed"):
        weighted_reward(["consistency=2"], load_clip, world_dataset(8))
    with pytest.raises(InputError, match="has no picture to edit"):
        weighted_reward(
            ["clip:demo", "consistency"], load_clip, EditDataset("words", (Item("a", "draw"),))
        )
    assert "consistency" not in widget_values(["demo"])
    summed = weighted_reward(["clip:demo", "consistency:0.5=0.25"], load_clip, world_dataset(8))
    assert summed.described == "clip=1 + consistency=0.25"


def test_cases_know_what_an_edit_is_to_change(tmp_path):
    """By the mask or, without one, by the difference; though ParaRL reads no targets."""
    model = tiny_model(tmp_path / "model")
    grey, spot = Image.new("RGB", (32, 32), "grey"), Image.new("RGB", (32, 32), "grey")
    spot.paste("red", (0, 0, 8, 8))
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (16, 16, 32, 32))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("plain", "pair", "masked"):
        grey.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("make it red")
        if name != "plain":
            spot.save(folder / f"{name}.target.png")
    mask.save(folder / "masked.mask.png")
    cases = {c.name.split(".")[0]: c for c in tokenised(open_dataset(folder), model)}
    assert cases["plain"].changes() is None
    assert cases["pair"].changes()[0, 0, 0] and not cases["pair"].changes()[0, 3, 3]
    assert cases["masked"].changes()[0].nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert cases["pair"].target is None


@pytest.fixture(scope="session")
def preference_model(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "pick")


def test_a_preference_model_scores_as_transformers_does(preference_model):
    """PickScore's own example: both features normalised, and their product."""
    pictures, words = [render(t.after) for t in TASKS], [t.instruction for t in TASKS]
    model = CLIPModel.from_pretrained(preference_model).train(False)
    processor = CLIPImageProcessor.from_pretrained(preference_model)
    tokenizer = CLIPTokenizerFast.from_pretrained(preference_model)
    expected = []
    with torch.no_grad():
        for picture, instruction in zip(pictures, words, strict=True):
            pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
            ids = tokenizer(instruction, return_tensors="pt")["input_ids"]
            output = model(input_ids=ids, pixel_values=pixels)
            expected.append(float(output.image_embeds @ output.text_embeds.T))
    pairs = [
        replace(p, case=replace(p.case, instruction=w), text="other")
        for p, w in zip(PAIRS, words, strict=True)
    ]
    summed = weighted_reward([f"preference:{preference_model}=1"], load_clip, world_dataset(1))
    assert summed(pairs).tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 4
    of_edits = [
        replace(p, case=replace(p.case, source=lambda: None), text=w)
        for p, w in zip(PAIRS, words, strict=True)
    ]
    assert summed(of_edits).tolist() == pytest.approx(expected, abs=1e-5)


def test_an_incomplete_preference_model_is_refused(preference_model, tmp_path):
    for missing, reason in (
        ("model.safetensors", "has no weights"),
        ("preprocessor_config.json", "has no preprocessor_config.json"),
    ):
        folder = tmp_path / missing
        shutil.copytree(preference_model, folder)
        (folder / missing).unlink()
        with pytest.raises(CheckpointError, match=reason):
            ClipScorer(folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="is of 'llama', not of a CLIP"):
        ClipScorer(other)
    assert is_clip(preference_model) and is_clip(DEMO_CLIP) and not is_clip(other)


def test_the_documented_reward_of_ones_own_works(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "REWARDS", dict(registry.REWARDS))
    text = (PACK_ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n([^`]*register\(RewardKind[^`]*)```", text)
    (tmp_path / "mine.py").write_text(lines)
    runpy.run_path(str(tmp_path / "mine.py"))
    summed = weighted_reward(["brevity=0.5"], load_clip, world_dataset(1))
    assert summed(PAIRS).tolist() == [-0.5 * len(p.text) for p in PAIRS]
    assert "brevity" in widget_values([])

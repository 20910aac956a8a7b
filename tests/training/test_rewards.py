"""Rewards: CLIP, sums of several, what a user's own may give, names for the command line."""

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
from mmada_parallel.training.cases import Case, Pair
from mmada_parallel.training.data.dataset import EditDataset
from mmada_parallel.training.data.items import Item
from mmada_parallel.training.data.registry import GENERATED
from mmada_parallel.training.rewards import registry
from mmada_parallel.training.rewards.clip import DEMO_CLIP, ClipReward, ClipScorer, clip_folder
from mmada_parallel.training.rewards.registry import (
    RewardKind,
    from_widget,
    weighted_reward,
    widget_values,
)
from mmada_parallel.training.rewards.weighted import Weighted, checked

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

"""Rewards: CLIP, sums of several, what a user's own may give, names for the command line."""

import numpy as np
import pytest
import torch
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.render import render
from mmada_parallel.mmp_core import CheckpointError, InputError
from mmada_parallel.mmp_core.state import Prompt, TokenState
from mmada_parallel.training.cases import Case, Pair
from mmada_parallel.training.rewards.clip import DEMO_CLIP, ClipScorer
from mmada_parallel.training.rewards.registry import (
    MAKERS,
    ClipReward,
    Weighted,
    checked,
    reward_named,
)

TASKS = [world.task(HELD_OUT + i) for i in range(4)]


def pair(number, text=None, shown=None):
    ids = torch.zeros(1, 1, dtype=torch.int64)
    prompt = Prompt(ids, ids, None, TokenState.masked(1, 1, (1, 1)))
    task = TASKS[number]
    text = task.sentence if text is None else text
    picture = render(TASKS[number if shown is None else shown].after)
    return Pair(Case(f"task {number}", prompt, task.instruction, None), text, text, picture, 1.0)


PAIRS = [pair(i) for i in range(4)]


def lengths(pairs):
    return [len(p.text) for p in pairs]


def test_clip_rewards_text_against_its_own_picture():
    pairs = [pair(0), pair(0, shown=1), pair(0, text=""), pair(1, text=TASKS[1].sentence * 20)]
    rewards = ClipReward("demo")(pairs)
    expected = ClipScorer(DEMO_CLIP).score([p.text for p in pairs], [p.picture for p in pairs])
    assert torch.equal(rewards, expected) and rewards.dtype == torch.float32
    assert rewards[2] == 0 and rewards[0] != rewards[1] and rewards[3] != 0
    assert torch.equal(ClipReward(DEMO_CLIP)(pairs), rewards)


def test_a_clip_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="open_clip_config.json is missing"):
        ClipReward(tmp_path)
    with pytest.raises(InputError, match="clip:FOLDER, or clip:demo"):
        ClipReward("")


def test_a_sum_weighs_its_parts_and_tells_their_means():
    def progress(pairs):
        return np.array([p.progress for p in pairs])

    total = Weighted([(lengths, 0.5), (progress, -2.0)])
    expected = torch.tensor([0.5 * len(p.text) - 2.0 for p in PAIRS])
    assert torch.allclose(total(PAIRS[:1]), expected[:1])
    assert torch.allclose(total(PAIRS[1:]), expected[1:])
    means = total.take_means()
    assert means == {"lengths": pytest.approx(sum(lengths(PAIRS)) / 4), "progress": 1.0}
    assert total.take_means() == {} and total([]).shape == (0,) and total.take_means() == {}


def test_equal_names_are_numbered_and_sums_nest():
    inner = Weighted([(lengths, 1.0), (lengths, 2.0)])
    outer = Weighted([(inner, 2.0)])
    assert torch.equal(outer(PAIRS), 6.0 * torch.tensor(lengths(PAIRS)).float())
    assert inner.take_means().keys() == {"lengths", "lengths 2"}
    assert outer.take_means().keys() == {"weighted"}


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


def test_rewards_are_named_as_on_a_command_line():
    asked = []

    def maker(name):
        return lambda rest, device: asked.append((name, rest, str(device))) or lengths

    makers = {"clip": maker("clip"), "checker": maker("checker")}
    specs = ["clip:models/a=b=0.25", "clip:C:\\models=x", "checker=-1e-1", "checker"]
    total = reward_named(specs, "cuda", makers)
    assert asked == [
        ("clip", "models/a=b", "cuda"),
        ("clip", "C:\\models=x", "cuda"),
        ("checker", "", "cuda"),
        ("checker", "", "cuda"),
    ]
    weights = 0.25 + 1.0 - 0.1 + 1.0
    assert torch.allclose(total(PAIRS), weights * torch.tensor(lengths(PAIRS)).float())
    with pytest.raises(InputError, match="no reward 'beauty': expected checker or clip"):
        reward_named(["beauty"], makers=makers)
    assert torch.equal(reward_named(["clip:demo"])(PAIRS), ClipReward("demo")(PAIRS))
    assert MAKERS.keys() == {"clip"}

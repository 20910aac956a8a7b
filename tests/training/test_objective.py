import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmada_parallel.training.pararl.objective import (
    RewardScale,
    advantages,
    clipped_objective,
    kl_estimate,
    token_weights,
)

NUMBERS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30)


@given(NUMBERS, NUMBERS)
def test_scale_is_mean_and_deviation_of_all_that_was_seen(first, second):
    scale = RewardScale().including(torch.tensor(first)).including(torch.tensor(second))
    everything = torch.tensor(first + second, dtype=torch.float64)
    assert scale.count == len(everything)
    assert scale.mean == pytest.approx(float(everything.mean()), abs=1e-9)
    assert scale.std == pytest.approx(float(everything.std(correction=0)), abs=1e-6)


def test_scale_of_nothing_new_is_the_same():
    scale = RewardScale(3, 1.0, 2.0)
    assert scale.including(torch.empty(0)) is scale


def test_normalised_reward_is_the_papers():
    """μ = 2, σ = 2: z of 0, 1, 2, 3, 10 is -1, -½, 0, ½, 4, of which the last is clipped."""
    scale = RewardScale(4, 2.0, 16.0)
    found = scale.normalise(torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0]))
    assert found.tolist() == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_rewards_that_are_all_alike_are_in_the_middle():
    scale = RewardScale().including(torch.full((5,), 0.3))
    assert scale.normalise(torch.full((2,), 0.3)).tolist() == [0.5, 0.5]


def test_advantages_by_hand():
    """Mean ½, population deviation ½ of (0, 1, 0, 1); the second group has no spread."""
    found, spread = advantages(torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.4] * 4]), 0.01)
    assert found.tolist() == [[-1.0, 1.0, -1.0, 1.0], [0.0] * 4]
    assert spread.tolist() == [True, False]


def test_deviation_below_the_floor_is_not_blown_up():
    found, spread = advantages(torch.tensor([0.500, 0.502]), 0.1)
    assert spread
    assert found.tolist() == pytest.approx([-0.01, 0.01], rel=1e-3)


def test_each_step_has_its_own_advantages():
    rewards = torch.rand(3, 2, 8, generator=torch.Generator().manual_seed(0))
    whole, _ = advantages(rewards, 0.01)
    for group in range(3):
        for step in range(2):
            assert torch.equal(whole[group, step], advantages(rewards[group, step], 0.01)[0])


@pytest.mark.parametrize(
    "ratio, advantage, wanted, clips",
    [
        (1.0, 2.0, 2.0, False),
        (1.1, 2.0, 2.2, False),
        (1.5, 2.0, 2.4, True),  # gained enough
        (0.5, 2.0, 1.0, False),  # may come back
        (1.5, -2.0, -3.0, False),
        (0.5, -2.0, -1.6, True),
    ],
)
def test_clipped_objective_by_hand(ratio, advantage, wanted, clips):
    found, clipped = clipped_objective(
        torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), 0.2
    )
    assert float(found) == pytest.approx(wanted)
    assert bool(clipped) is clips


def test_kl_estimate_is_exact_in_expectation_and_never_negative():
    policy, reference = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.4, 0.4, 0.2])
    estimate = kl_estimate(policy.log(), reference.log())
    exact = (policy * (policy / reference).log()).sum()
    assert (estimate >= 0).all()
    assert float((policy * estimate).sum()) == pytest.approx(float(exact))
    assert float(kl_estimate(torch.tensor(-1.5), torch.tensor(-1.5))) == 0


def test_tokens_of_a_step_weigh_one_together():
    weights = token_weights(torch.tensor([0, 2, 2, 0, 0, 2, 2]), owners=3)
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 4, 1 / 4, 1 / 3, 1 / 3, 1 / 4, 1 / 4])


def test_gradient_is_that_of_finite_differences():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor([0, 1, 2, 3, 4, 0])[:, None]
    owner = torch.tensor([0, 0, 0, 1, 1, 2])
    advantage = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)[owner]
    near = torch.randn(6, generator=rng, dtype=torch.float64) * 0.5
    old = logits.detach().log_softmax(-1).gather(-1, chosen)[:, 0] + near

    def loss(values):
        found = values.log_softmax(-1).gather(-1, chosen)[:, 0]
        gain, _ = clipped_objective(found, old, advantage, 0.2)
        return -((gain - 0.1 * kl_estimate(found, old)) * token_weights(owner, 3)).sum()

    assert torch.autograd.gradcheck(loss, logits)

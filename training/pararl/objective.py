"""The mathematics of ParaRL (arXiv 2511.09611, Eq. 3), on plain tensors.

What the paper leaves open, and what is done here:

- The normalised reward ``½(1 + clip((c - μ)/σ, -1, 1))`` takes μ and σ from all rewards of the run
  so far, the present ones included (paper: from a random 1 % of the training data).
- The standard deviation across a group is the population's, and never less than a floor: rewards
  that hardly differ would otherwise be blown up to large advantages.
- A group whose rewards at a step are all equal has no advantages: it is left out, and counted.
- The KL divergence is estimated per token by Schulman's k3, which is never negative, and averaged
  as the objective is. The paper names both the old policy and a fixed reference; either will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...mmp_core.errors import shown
from ...mmp_core.outside import field

NO_SPREAD = 1e-6
"""Standard deviation of normalised rewards up to which a group counts as having no spread."""
_LARGEST = 1e100
"""Of a mean of rewards, whose square is a float, too."""
_FIELDS = {
    "count": field(int, 0, 10**12),
    "mean": field(float, -_LARGEST, _LARGEST),
    "squares": field(float, 0, _LARGEST**2),
}


@dataclass(frozen=True)
class RewardScale:
    """Mean and variance of all rewards so far (Welford, merged by Chan's formula).

    ``squares``: sum of squared differences from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RewardScale:
        """The scale whose fields a run saved. Raises ``TypeError`` or ``ValueError`` for others."""
        scale = cls(**values)
        if not all(kind.fits(getattr(scale, name)) for name, kind in _FIELDS.items()):
            raise ValueError(f"its scale of rewards is {shown(values)}")
        return scale

    def including(self, rewards: Tensor) -> RewardScale:
        """The scale after seeing ``rewards`` (any shape), too."""
        values = rewards.detach().cpu().double().flatten()
        added = values.numel()
        if not added:
            return self
        mean = float(values.mean())
        squares = float(((values - mean) ** 2).sum())
        count, step = self.count + added, mean - self.mean
        return RewardScale(
            count,
            self.mean + step * added / count,
            self.squares + squares + step**2 * self.count * added / count,
        )

    @property
    def std(self) -> float:
        """Standard deviation (population); 0 before the first reward."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def normalise(self, rewards: Tensor) -> Tensor:
        """``½(1 + clip(z, -1, 1))`` in 0 … 1, float32; ½ where all rewards so far are equal."""
        deviation = rewards.double() - self.mean
        scored = deviation / self.std if self.std > NO_SPREAD else torch.zeros_like(deviation)
        return (0.5 * (1 + scored.clamp(-1, 1))).float()


def advantages(rewards: Tensor, std_floor: float) -> tuple[Tensor, Tensor]:
    """Advantages within groups, from normalised ``rewards`` (…, G).

    Returns them (…, G), 0 for a group without spread, and (…) bool: which groups have spread.
    """
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    std = centred.square().mean(dim=-1, keepdim=True).sqrt()
    spread = std > NO_SPREAD
    return torch.where(spread, centred / std.clamp_min(std_floor), 0.0), spread[..., 0]


def clipped_objective(
    log_probs: Tensor, old_log_probs: Tensor, advantage: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """``min(r·A, clip(r, 1-ε, 1+ε)·A)`` per token, to be maximised, and where clipping decides.

    All arguments: one number per token (K,); ``advantage`` is that of the token's rollout and step.
    """
    ratio = (log_probs - old_log_probs).exp()
    free, held = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return torch.minimum(free, held), held < free


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Schulman's k3 per token, ≥ 0: unbiased for KL(π_θ ‖ π_ref) under samples of π_θ."""
    difference = reference_log_probs - log_probs
    return difference.expm1() - difference


def token_weights(owner: Tensor, owners: int) -> Tensor:
    """(K,) float32: 1/|τ_i(t)| for each token, ``owner`` (K,) int64 being its rollout and step.

    ``owners``: how many of these there are. Text and image tokens count alike.
    """
    counts = torch.bincount(owner, minlength=owners)
    return 1.0 / counts[owner].float()

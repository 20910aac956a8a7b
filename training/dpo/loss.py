"""The likelihood of whole answers under masked diffusion, and DPO's loss of two of them.

An answer's log-prob is not known; its evidence lower bound is, as an expectation over masks (LLaDA,
arXiv 2502.09992, Eq. 6): of L tokens that were to be answered, l are masked, l uniform in 1 … L and
which ones at random, and the bound is the mean of L/l · Σ log p(masked token | the others). Text
and picture are one answer of L tokens.

DPO puts differences of four such bounds into a logistic function, so that their noise becomes bias.
As VRPO does (LLaDA 1.5, arXiv 2505.19223), policy and reference see the same masks, and every mask
is drawn anew with its own l; on the toy world this takes 86 % of the variance away. Both answers
share their masks, too, since they are alike in most places, and masks come in pairs that together
cover every token (compare coupled sampling, DiffuCoder, arXiv 2506.20639): the first l tokens of a
random order, and its last L + 1 - l. Each of a pair is distributed as a single one, so that the
estimate keeps its mean. What these two add was too little to be measured there.
``benchmarks/results/dpo.json`` has the variances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.errors import InputError
from ...mmp_core.sampler.settings import SamplerSettings
from ...mmp_core.state import MASKED, TokenState
from ..cases import Case
from ..pararl.log_probs import log_probs
from ..pararl.rollout import ScoredSteps

UNGUIDED = SamplerSettings(text_temperature=1.0, joint_guidance=0.0)


@dataclass(frozen=True)
class Masks:
    """``text`` (D, T), ``image`` (D, H, W): bool on the CPU, what is masked of an answer.
    ``weight``: (D,) float32, L/l of each."""

    text: Tensor
    image: Tensor
    weight: Tensor


def draw_masks(
    initial: TokenState, count: int, rng: torch.Generator, *, paired: bool = True
) -> Masks:
    """``count`` masks of what ``initial`` (batch 1) leaves open. ``paired``: see the module; of an
    odd number the last is single. Raises ``InputError`` where nothing is open."""
    words = initial.text.shape[1]
    is_open = torch.cat((initial.text[0], initial.image[0].flatten())).cpu() == MASKED
    places = is_open.nonzero()[:, 0]
    total = len(places)
    if not total:
        raise InputError("Nothing was left open to answer, so that no answer can be preferred.")
    masks, weights = torch.zeros(count, len(is_open), dtype=torch.bool), torch.empty(count)
    order, length = places, 0
    for number in range(count):
        if paired and number % 2:
            chosen = order[length - 1 :]
        else:
            order = places[torch.randperm(total, generator=rng)]
            length = int(torch.randint(1, total + 1, (), generator=rng))
            chosen = order[:length]
        masks[number, chosen], weights[number] = True, total / len(chosen)
    text, image = masks[:, :words], masks[:, words:]
    return Masks(text, image.reshape(count, *initial.grid), weights)


@dataclass(frozen=True)
class Comparison:
    """A picked and a rejected answer to one prompt in masked forms, as rows of one sum.

    ``rows``: M masked forms with what they hide. ``share``: (M,) float32, so that the sum of shares
    times log-probs is the estimated log-prob of the picked answer less that of the rejected one.
    """

    rows: ScoredSteps
    share: Tensor

    @classmethod
    def of(cls, picked: Case, masks: Masks, other: Masks | None = None) -> Comparison:
        """``picked``: with target and rejected answer. ``other``: masks of the rejected answer,
        those of the picked one by default."""
        if picked.rejected is None:
            raise InputError(f"{picked.name} has no rejected answer, which DPO needs.")
        sides = (
            (picked.needed_target(), masks, 1.0),
            (picked.rejected, other or masks, -1.0),
        )
        rows = [_hidden(picked, answer, masks) for answer, masks, _ in sides]
        share = [sign * masks.weight / len(masks.weight) for _, masks, sign in sides]
        return cls(ScoredSteps.join(rows), torch.cat(share))

    def to(self, device: torch.device | str) -> Comparison:
        rows = {name: value.to(device) for name, value in vars(self.rows).items()}
        return Comparison(ScoredSteps(**rows), self.share.to(device))

    def split(self, size: int) -> list[Comparison]:
        """In parts of at most ``size`` rows."""
        return [
            Comparison(self.rows[start : start + size], self.share[start : start + size])
            for start in range(0, len(self.share), size)
        ]

    def log_ratios(self, model: Model) -> Tensor:
        """(M,) float32: each row's share times the log-probs of what it hides."""
        values, owner = log_probs(model, self.rows, UNGUIDED)
        return torch.zeros_like(self.share).index_add(0, owner, values) * self.share


def _hidden(case: Case, answer: TokenState, masks: Masks) -> ScoredSteps:
    count, device = len(masks.weight), answer.text.device
    text, image = masks.text.to(device), masks.image.to(device)
    after = TokenState(answer.text.expand(count, -1), answer.image.expand(count, -1, -1))
    state = TokenState(after.text.masked_fill(text, MASKED), after.image.masked_fill(image, MASKED))
    return ScoredSteps(
        case.prompt.to(device).repeat(count),
        state,
        after,
        text,
        image,
        torch.zeros(count, dtype=torch.int64, device=device),
        torch.ones(count, dtype=torch.bool, device=device),
    )


def preference_loss(margin: Tensor, beta: float) -> Tensor:
    """``-log σ(β · margin)``, ``margin`` being how much more the policy than the reference prefers
    the picked answer, in log-probs."""
    return F.softplus(-beta * margin)

"""What rewards judge of rollouts: pairs of text and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.pipeline import decode_image, decode_text
from ...mmp_core.state import MASKED, TokenState
from ...mmp_core.variants.base import MASKED_TEXT
from ..cases import Case, Pair
from .rollout import Rollouts, ScoredSteps


def trajectory_pairs(
    model: Model, rollouts: Rollouts, *, micro_batch: int, before: bool = False
) -> list[Pair]:
    """One pair per scored step: the tokens after it, and for masked image codes the model's
    likeliest, asked anew given just those. ``before``: the tokens before it instead, for those of
    :func:`needs_before`.

    The sampler's own guess was made before the step, at random: it cannot agree with what the step
    unmasked, so a reward of it says next to nothing about the step.
    """
    _, drawn, size = rollouts.shape
    steps, cases = rollouts.steps, rollouts.cases(drawn * size)
    if before:
        rows = needs_before(rollouts).nonzero()[:, 0]
        cases = [cases[row] for row in rows.tolist()]
        steps = steps[rows]
        steps = replace(steps, after=steps.state, index=steps.index - 1)
    parts = [steps[i : i + micro_batch] for i in range(0, len(steps), micro_batch)]
    guess = torch.cat([_likeliest_picture(model, part) for part in parts])
    progress = [(index + 1) / rollouts.total_steps for index in steps.index.tolist()]
    shown = TokenState(steps.after.text, guess)
    return _pairs(model, shown, cases, progress, micro_batch)


def needs_before(rollouts: Rollouts) -> Tensor:
    """(M,) bool: scored steps whose predecessor is none, so that its pair is not that before."""
    index = rollouts.steps.index.view(rollouts.shape)
    first = torch.ones_like(index, dtype=torch.bool)
    first[:, 1:] = index[:, 1:] != index[:, :-1] + 1
    return first.flatten()


def final_pairs(model: Model, rollouts: Rollouts, *, micro_batch: int) -> list[Pair]:
    """One pair per rollout, of its final state."""
    cases = rollouts.cases(rollouts.size)
    return _pairs(model, rollouts.final, cases, [1.0] * len(cases), micro_batch)


def sample_pairs(model: Model, rollouts: Rollouts, count: int) -> list[Pair]:
    """Final pairs of the first rollouts of the first ``count`` groups."""
    cases = rollouts.cases(1)[:count]
    first = rollouts.final[:: rollouts.size][:count]
    return _pairs(model, first, cases, [1.0] * len(cases), max(1, count))


def _pairs(
    model: Model,
    shown: TokenState,
    cases: Sequence[Case],
    progress: Sequence[float],
    micro_batch: int,
) -> list[Pair]:
    """Equal pictures are decoded once, ``micro_batch`` at a time."""
    texts, marked = decode_text(model, shown), decode_text(model, shown, masked=MASKED_TEXT)
    codes, places = shown.image[:1], torch.zeros(shown.batch, dtype=torch.int64)
    if codes.numel():
        codes, places = shown.image.cpu().unique(dim=0, return_inverse=True)
        codes = codes.to(shown.image.device)
    distinct = TokenState(codes.new_zeros(len(codes), 0), codes)
    starts = range(0, len(codes), micro_batch)
    decoded = [p for i in starts for p in decode_image(model, distinct[i : i + micro_batch])]
    pictures = [decoded[place] for place in places.tolist()]
    return [Pair(*fields) for fields in zip(cases, texts, marked, pictures, progress, strict=True)]


@torch.no_grad()
def _likeliest_picture(model: Model, steps: ScoredSteps) -> Tensor:
    """(M, H, W) codes without masks."""
    picture = steps.after.image.clone()
    unfinished = (picture == MASKED).flatten(1).any(dim=1)
    if unfinished.any():
        asked = steps[unfinished.nonzero()[:, 0]]
        sequence = model.layout.model_input(asked.prompt, asked.after)
        hidden = model.transformer(sequence.ids)[:, sequence.image_positions]
        logits = model.transformer.logits(hidden, model.layout.image_choices)
        codes = logits.argmax(dim=-1).view_as(asked.after.image)
        picture[unfinished] = torch.where(asked.after.image == MASKED, codes, asked.after.image)
    return picture

"""Caching: which positions of a branch are computed anew, and which keep what they had.

The family of ML-Cache (Lumina-DiMOO, arXiv 2510.06308), dLLM-Cache (arXiv 2506.06295), dKV-Cache
(arXiv 2505.15781) and Fast-dLLM (arXiv 2505.22618), for text and image in one sequence. Measured by
``benchmarks/speed.py``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.transformer import KeyValueCache, MaskedDiffusionTransformer
from ..state import MASKED, Step
from ..variants.base import ModelInput
from .plan import StepTargets
from .positions import MaskedPositions

REFRESH_EVERY = 4
"""Image steps from one refresh of a whole branch to the next (ML-Cache: 5). All branches are
refreshed at the same step: guidance multiplies what their staleness differs by."""
CHANGED_SHARE = 0.5
"""Share (0 … 1) of a branch's text or image tokens; once more of them than this were unmasked since
the last refresh, the branch is refreshed."""
ONE_IN = 4
"""Of the masked image codes, the least certain one in so many is computed (the share of dLLM-Cache;
by certainty as in ML-Cache)."""

PROMPT_EVERY = 4
"""Refreshes of a branch from one that computes its prompt, too, to the next; the others compute all
from the first token of the answer on (dLLM-Cache: 50 steps; Fast-dLLM and SPRINT: once)."""

Masked = tuple[int, int]
"""Masked text and image tokens of one sample."""


@dataclass
class SampleRuns:
    """The runs of one branch for one sample. ``masked``: masked tokens at the last run;
    ``refreshed_at``: at the last refresh; ``None`` before the first. ``image_runs``: how many so
    far predicted image codes. ``refreshes``: how many there were."""

    masked: Masked | None = None
    refreshed_at: Masked | None = None
    image_runs: int = 0
    refreshes: int = 0


class BranchCache:
    """Keys, values and hidden states of one branch, and the ids they belong to."""

    def __init__(self, batch: int):
        self.keys_values = KeyValueCache()
        self.ids: Tensor | None = None
        self.hidden: Tensor | None = None
        self.runs = [SampleRuns() for _ in range(batch)]

    def renew(
        self, transformer: MaskedDiffusionTransformer, ids: Tensor, positions: Tensor | None
    ) -> Tensor:
        """Normed hidden states (B, L, d_model) of ``ids`` (B, L), computed anew at ``positions``
        (B, n), where ``L`` stands for none; by default everywhere."""
        length = ids.shape[1]
        if positions is None or self.ids is None or self.hidden is None:
            hidden = transformer(ids, cache=self.keys_values)
            self.ids, self.hidden = F.pad(ids, (0, 1)), F.pad(hidden, (0, 0, 0, 1))
        else:
            hidden = transformer(ids, cache=self.keys_values, positions=positions)
            self.hidden.scatter_(1, positions[..., None].expand_as(hidden), hidden)
            self.ids.scatter_(1, positions, ids.gather(1, positions.clamp_max(length - 1)))
        return self.hidden[:, :length]


class Cache(Protocol):
    """Says what of a branch is computed anew at a step."""

    def positions(
        self,
        branch: str,
        model_input: ModelInput,
        cache: BranchCache,
        ids: Tensor,
        targets: StepTargets,
    ) -> Tensor | None:
        """(B, n) positions of ``ids`` (B, L) to compute, ``L`` for none; ``None`` for all."""
        ...


def prompt_length(model_input: ModelInput) -> int:
    """How many positions there are before the answer's first token, read back from the device; all
    where the answer is empty."""
    first = torch.cat((model_input.text_positions[:1], model_input.image_positions[:1]))
    return int(first.min()) if len(first) else model_input.ids.shape[1]


def as_positions(wanted: Tensor, count: int) -> Tensor:
    """(B, count) positions where ``wanted`` (B, L) is set, ``L`` after the last."""
    length, rank = wanted.shape[1], torch.arange(count, device=wanted.device)
    order = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return order.masked_fill(rank >= wanted.sum(dim=1, keepdim=True), length)


@dataclass(frozen=True)
class CachePolicy:
    """Computes what a step predicts and what changed since the branch was last run; of the image
    only the least certain part; and all of it from time to time. Each sample by itself.

    ``text_branches``, ``image_branches``: those that text and image logits are made of.
    ``prompts``: the positions of each branch before the answer's first token. ``prompt_every``: see
    :data:`PROMPT_EVERY`; 1: each refresh computes all. The others: see the constants that are
    their defaults.
    """

    text_branches: Collection[str]
    image_branches: Collection[str]
    prompts: Mapping[str, int] = field(default_factory=dict)
    refresh_every: int = REFRESH_EVERY
    changed_share: float = CHANGED_SHARE
    one_in: int = ONE_IN
    prompt_every: int = 1

    def positions(
        self,
        branch: str,
        model_input: ModelInput,
        cache: BranchCache,
        ids: Tensor,
        targets: StepTargets,
    ) -> Tensor | None:
        """How many, :meth:`count`, is known without reading anything back from the device."""
        length = ids.shape[1]
        text = targets.text.positions if targets.text and branch in self.text_branches else None
        image = targets.image.positions if targets.image and branch in self.image_branches else None
        cached = torch.full_like(ids, MASKED) if cache.ids is None else cache.ids[:, :length]
        wanted = F.pad(ids != cached, (0, 1))
        if text:
            places = model_input.text_positions[text.index]
            wanted.scatter_(1, torch.where(text.valid, places, length), True)
        if image:
            places = model_input.image_positions[image.index]
            chosen = self.least_certain(image, targets.last)
            wanted.scatter_(1, torch.where(chosen, places, length), True)
        wanted = wanted[:, :length]
        places = model_input.text_positions, model_input.image_positions
        tokens, sizes = (len(places[0]), len(places[1])), []
        for i, (runs, masked) in enumerate(zip(cache.runs, targets.masked, strict=True)):
            predicted = text.counts[i] if text else 0, image.counts[i] if image else 0
            size, refreshes = self.count(branch, length, runs, masked, tokens, predicted)
            if refreshes or not size:
                wanted[i, : length - size], wanted[i, length - size :] = False, True
            sizes.append(size)
        if cache.ids is None or min(sizes) == length:
            return None
        return as_positions(wanted, max(sizes))

    def count(
        self,
        branch: str,
        length: int,
        runs: SampleRuns,
        masked: Masked,
        tokens: Masked,
        predicted: Masked,
    ) -> tuple[int, bool]:
        """How many of the ``length`` positions of one sample are computed, and whether they are a
        refresh: its last ones. ``masked``: before the step, of ``tokens``; ``predicted``: those to
        predict of the branch. The run is noted in ``runs``."""
        if not any(predicted):
            return 0, False
        changed = sum(runs.masked or masked) - sum(masked)
        refreshes, runs.masked = self._refreshes(runs, masked, tokens, bool(predicted[1])), masked
        if not refreshes:
            return changed + predicted[0] + math.ceil(predicted[1] / self.one_in), False
        again = (runs.refreshes - 1) % self.prompt_every == 0
        return length if again else length - self.prompts[branch], True

    def _refreshes(self, runs: SampleRuns, masked: Masked, tokens: Masked, image: bool) -> bool:
        """Whether this run of one sample, which is counted, is a refresh. ``tokens``: masked or
        not. ``image``: whether it predicts image codes."""
        refreshes = runs.refreshed_at is None or any(
            before - now > self.changed_share * total
            for before, now, total in zip(runs.refreshed_at, masked, tokens, strict=True)
        )
        if image:
            refreshes |= runs.image_runs % self.refresh_every == 0
            runs.image_runs += 1
        if refreshes:
            runs.refreshed_at, runs.refreshes = masked, runs.refreshes + 1
        return refreshes

    def least_certain(self, image: MaskedPositions, last: Step) -> Tensor:
        """(B, n) bool: one in ``one_in`` of the positions, by the confidence of the last guess."""
        confidence = last.image_confidence.flatten(1).gather(1, image.index)
        order = confidence.masked_fill(~image.valid, torch.inf).argsort(dim=1, stable=True)
        share = (image.valid.sum(dim=1, keepdim=True) + self.one_in - 1) // self.one_in
        return image.valid & (order.argsort(dim=1) < share)

"""Caching: which positions of a branch are computed anew, and which keep what they had.

The family of ML-Cache (Lumina-DiMOO, arXiv 2510.06308), dLLM-Cache (arXiv 2506.06295), dKV-Cache
(arXiv 2505.15781) and Fast-dLLM (arXiv 2505.22618), for text and image in one sequence. Measured by
``benchmarks/speed.py``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.transformer import KeyValueCache, MaskedDiffusionTransformer
from ..state import MASKED, Step
from ..variants.base import ModelInput
from .positions import MaskedPositions
from .schedule import StepTargets

REFRESH_EVERY = 4
"""Image steps from one time that all of a branch is computed to the next (ML-Cache: 5). All
branches then do so at the same step: guidance multiplies what their staleness differs by."""
CHANGED_SHARE = 0.5
"""All of a branch is also computed once more than this of its text or image was decided since."""
ONE_IN = 4
"""Of the undecided image, the least certain one in so many is computed (the share of dLLM-Cache; by
certainty as in ML-Cache)."""


@dataclass(frozen=True)
class StepQuery:
    """What a step asks of the model. ``last``: the step before."""

    targets: StepTargets
    last: Step


class BranchCache:
    """What is kept of one branch: keys, values and hidden states, and the ids they belong to.

    Per sample: ``undecided`` text and image tokens at its last run, and when all of it was last
    computed (``refreshed_at``), ``None`` before the first; ``image_runs`` so far.
    """

    def __init__(self, batch: int):
        self.cache = KeyValueCache()
        self.ids: Tensor | None = None
        self.hidden: Tensor | None = None
        self.undecided: list[tuple[int, int] | None] = [None] * batch
        self.refreshed_at, self.image_runs = list(self.undecided), [0] * batch

    def renew(
        self, transformer: MaskedDiffusionTransformer, ids: Tensor, positions: Tensor | None
    ) -> Tensor:
        """Normed hidden states (B, L, d_model) of ``ids`` (B, L), computed anew at ``positions``
        (B, n), where ``L`` stands for none; by default everywhere."""
        length = ids.shape[1]
        if positions is None:
            hidden = transformer(ids, cache=self.cache)
            self.ids, self.hidden = F.pad(ids, (0, 1)), F.pad(hidden, (0, 0, 0, 1))
        else:
            hidden = transformer(ids, cache=self.cache, positions=positions)
            self.hidden.scatter_(1, positions[..., None].expand_as(hidden), hidden)
            self.ids.scatter_(1, positions, ids.gather(1, positions.clamp_max(length - 1)))
        return self.hidden[:, :length]


@dataclass(frozen=True)
class CachePolicy:
    """Computes what a step asks about and what changed since the branch was last run; of the image
    only the least certain part; and all of it from time to time. Each sample by itself.

    ``text_branches``, ``image_branches``: those that text and image logits are made of. The others:
    see the constants that are their defaults.
    """

    text_branches: Collection[str]
    image_branches: Collection[str]
    refresh_every: int = REFRESH_EVERY
    changed_share: float = CHANGED_SHARE
    one_in: int = ONE_IN

    def positions(
        self, branch: str, sequence: ModelInput, cached: BranchCache, ids: Tensor, query: StepQuery
    ) -> Tensor | None:
        """(B, n) positions of ``ids`` (B, L) to compute, ``L`` for none; ``None`` for all.

        How many there are is known without reading anything back from the device.
        """
        targets, length = query.targets, ids.shape[1]
        text = targets.text.positions if targets.text and branch in self.text_branches else None
        image = targets.image.positions if targets.image and branch in self.image_branches else None
        wanted = self._wanted(sequence, cached, ids, text, image, query.last)
        sizes = []
        tokens = len(sequence.text_positions), len(sequence.image_positions)
        counts = zip(targets.text_masked_before, targets.image_masked_before, strict=True)
        for i, undecided in enumerate(counts):
            texts, images = (positions.counts[i] if positions else 0 for positions in (text, image))
            if not texts + images:
                wanted[i] = False
                sizes.append(0)
                continue
            if self._refreshes(cached, i, undecided, tokens, images > 0):
                wanted[i] = True
                sizes.append(length)
            else:
                changed = sum(cached.undecided[i]) - sum(undecided)
                sizes.append(changed + texts + -(-images // self.one_in))
            cached.undecided[i] = undecided
        if cached.ids is None or min(sizes) == length:
            return None
        order = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        order, rank = order[:, : max(sizes)], torch.arange(max(sizes), device=ids.device)
        return order.masked_fill(rank >= wanted.sum(dim=1, keepdim=True), length)

    def _refreshes(
        self,
        cached: BranchCache,
        i: int,
        undecided: tuple[int, int],
        tokens: tuple[int, int],
        image: bool,
    ) -> bool:
        """Whether all of sample ``i`` is computed at this run, which is counted.

        ``undecided`` text and image tokens, of so many ``tokens``. ``image``: whether image tokens
        are asked about.
        """
        before = cached.refreshed_at[i]
        refreshes = before is None or any(
            was - now > self.changed_share * of
            for was, now, of in zip(before, undecided, tokens, strict=True)
        )
        if image:
            refreshes |= cached.image_runs[i] % self.refresh_every == 0
            cached.image_runs[i] += 1
        if refreshes:
            cached.refreshed_at[i] = undecided
        return refreshes

    def _wanted(
        self,
        sequence: ModelInput,
        cached: BranchCache,
        ids: Tensor,
        text: MaskedPositions | None,
        image: MaskedPositions | None,
        last: Step,
    ) -> Tensor:
        """(B, L) bool: what changed, what text is asked about, and part of the image that is."""
        length = ids.shape[1]
        kept = torch.full_like(ids, MASKED) if cached.ids is None else cached.ids[:, :length]
        wanted = F.pad(ids != kept, (0, 1))
        if text:
            places = sequence.text_positions[text.index]
            wanted.scatter_(1, torch.where(text.valid, places, length), True)
        if image:
            places = sequence.image_positions[image.index]
            chosen = self._least_certain(image, last)
            wanted.scatter_(1, torch.where(chosen, places, length), True)
        return wanted[:, :length]

    def _least_certain(self, image: MaskedPositions, last: Step) -> Tensor:
        """(B, n) bool: one in ``one_in`` of the rows, by the confidence of the last guess."""
        confidence = last.image_confidence.flatten(1).gather(1, image.index)
        order = confidence.masked_fill(~image.valid, torch.inf).argsort(dim=1, stable=True)
        some = (image.valid.sum(dim=1, keepdim=True) + self.one_in - 1) // self.one_in
        return image.valid & (order.argsort(dim=1) < some)

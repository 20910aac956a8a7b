"""Reuse: which positions of a branch are computed anew, and which keep what they had.

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

from ..layout.base import Sequence
from ..state import MASKED, Step
from ..transformer import KeyValueCache, MaskedDiffusionTransformer
from .rows import Rows
from .schedule import Due

REFRESH_EVERY = 5
"""Image steps from one time that all of a branch is computed to the next (ML-Cache's interval). All
branches then do so at the same step: guidance multiplies what their staleness differs by."""
LONGEST_REUSE = 32
"""Runs of a branch after which all of it is computed, image step or not."""
ONE_IN = 4
"""Of the undecided image, the least certain one in so many is computed (the share of dLLM-Cache; by
certainty as in ML-Cache)."""


@dataclass(frozen=True)
class Asked:
    """What a step asks of the model. ``last``: the step before."""

    due: Due
    last: Step


class Memory:
    """What is kept of one branch: keys, values and hidden states, and the ids they belong to.

    Per sample: ``runs`` since all of it was computed, ``None`` where that never was; ``image_runs``
    so far; ``undecided`` tokens at its last run.
    """

    def __init__(self, batch: int):
        self.cache = KeyValueCache()
        self.ids: Tensor | None = None
        self.hidden: Tensor | None = None
        self.runs: list[int | None] = [None] * batch
        self.image_runs, self.undecided = [0] * batch, [0] * batch

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
class Reuse:
    """Computes what a step asks about and what changed since the branch was last run; of the image
    only the least certain part; and all of it from time to time. Each sample by itself.

    ``text_branches``, ``image_branches``: those that text and image logits are made of. The others:
    see the constants that are their defaults.
    """

    text_branches: Collection[str]
    image_branches: Collection[str]
    refresh_every: int = REFRESH_EVERY
    longest: int = LONGEST_REUSE
    one_in: int = ONE_IN

    def positions(
        self, branch: str, sequence: Sequence, memory: Memory, ids: Tensor, asked: Asked
    ) -> Tensor | None:
        """(B, n) positions of ``ids`` (B, L) to compute, ``L`` for none; ``None`` for all.

        How many there are is known without reading anything back from the device.
        """
        due, (batch, length) = asked.due, ids.shape
        text = due.text.rows if due.text and branch in self.text_branches else None
        image = due.image.rows if due.image and branch in self.image_branches else None
        wanted = self._wanted(sequence, memory, ids, text, image, asked.last)
        sizes = []
        for i in range(batch):
            texts, images = (rows.counts[i] if rows else 0 for rows in (text, image))
            if not texts + images:
                wanted[i] = False
                sizes.append(0)
            elif self._refreshes(memory, i, images > 0):
                wanted[i] = True
                sizes.append(length)
            else:
                changed = memory.undecided[i] - due.undecided[i]
                sizes.append(changed + texts + -(-images // self.one_in))
            if texts + images:
                memory.undecided[i] = due.undecided[i]
        if memory.ids is None or min(sizes) == length:
            return None
        order = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        order, rank = order[:, : max(sizes)], torch.arange(max(sizes), device=ids.device)
        return order.masked_fill(rank >= wanted.sum(dim=1, keepdim=True), length)

    def _refreshes(self, memory: Memory, sample: int, image: bool) -> bool:
        """Whether all of the sample is computed at this run, which is counted."""
        runs = memory.runs[sample]
        refreshes = runs is None or runs + 1 >= self.longest
        if image:
            refreshes |= memory.image_runs[sample] % self.refresh_every == 0
            memory.image_runs[sample] += 1
        memory.runs[sample] = 0 if refreshes else runs + 1
        return refreshes

    def _wanted(
        self,
        sequence: Sequence,
        memory: Memory,
        ids: Tensor,
        text: Rows | None,
        image: Rows | None,
        last: Step,
    ) -> Tensor:
        """(B, L) bool: what changed, what text is asked about, and part of the image that is."""
        length = ids.shape[1]
        kept = torch.full_like(ids, MASKED) if memory.ids is None else memory.ids[:, :length]
        wanted = F.pad(ids != kept, (0, 1))
        if text:
            places = sequence.text_positions[text.index]
            wanted.scatter_(1, torch.where(text.valid, places, length), True)
        if image:
            places = sequence.image_positions[image.index]
            chosen = self._least_certain(image, last)
            wanted.scatter_(1, torch.where(chosen, places, length), True)
        return wanted[:, :length]

    def _least_certain(self, image: Rows, last: Step) -> Tensor:
        """(B, n) bool: one in ``one_in`` of the rows, by the confidence of the last guess."""
        confidence = last.image_confidence.flatten(1).gather(1, image.index)
        order = confidence.masked_fill(~image.valid, torch.inf).argsort(dim=1, stable=True)
        some = (image.valid.sum(dim=1, keepdim=True) + self.one_in - 1) // self.one_in
        return image.valid & (order.argsort(dim=1) < some)

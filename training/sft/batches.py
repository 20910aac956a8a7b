"""Which examples a step trains on: sorted by shape over a window of steps, no padding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .loss import Condition, Example, draw_conditions, group

if TYPE_CHECKING:
    from .pretrain import SFTSettings

Batch = list[tuple[Example, Condition]]
"""One step: stacked examples of equal shape, each with what is dropped of its prompt."""


class Windows:
    """``windows[w]``: the batches of steps ``w·window`` and following, for one of ``ranks``.

    The window's examples are those of ``window·batch_size`` consecutive indices. They are sorted by
    shape, cut into micro-batches, and these shuffled, so a step's number of examples varies around
    ``batch_size``. Depends on nothing but the settings and ``w``.
    """

    def __init__(self, dataset: Sequence[Example], settings: SFTSettings, rank: int, ranks: int):
        self.dataset, self.settings, self.rank, self.ranks = dataset, settings, rank, ranks

    def __getitem__(self, number: int) -> list[Batch]:
        settings, count = self.settings, self.settings.window * self.settings.batch_size
        own = slice(self.rank, None, self.ranks)
        seed = settings.seed * 1_000_003 + number
        conditions = draw_conditions(
            count,
            torch.Generator().manual_seed(seed),
            text=settings.drop_text,
            image=settings.drop_image,
            both=settings.drop_both,
        )[own]
        examples = [self.dataset[i] for i in range(number * count, (number + 1) * count)[own]]
        share = len(examples) / settings.window
        pieces = _cut(group(examples, conditions), min(settings.micro_batch, max(1, int(share))))
        random.Random(f"{seed} {self.rank}").shuffle(pieces)
        batches: list[Batch] = [[] for _ in range(settings.window)]
        placed = 0
        for piece in pieces:
            batches[min(int(placed / share), settings.window - 1)].append(piece)
            placed += piece[0].target.batch
        return batches


def _cut(groups: Batch, most: int) -> Batch:
    """The groups in pieces of at most ``most`` examples."""
    return [
        (stacked[start : start + most], condition)
        for stacked, condition in groups
        for start in range(0, stacked.target.batch, most)
    ]

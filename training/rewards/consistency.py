"""How far an edit leaves alone what it should: the answer's picture against the input's."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...mmp_core.errors import InputError, shown
from ..cases import Case, Pair

SHARE = 0.25
"""Of the picture, that an edit may change where nothing says which part."""
LOST = 0.25
"""Mean difference of an image token's pixels, as a share of their range, at which nothing of it is
kept. Half as much counts half, so that what the image tokenizer itself changes costs little."""


class ConsistencyReward:
    """0 … 1 per pair: the mean, over the image tokens that the edit should leave alone, of how
    alike their pixels are in answer and input.

    Which tokens these are: those outside the item's mask or, without one, where input and target
    do not differ. Without either, ``share`` of the picture may change, wherever it changed most.
    A case without an input picture, or one that may change everywhere, scores 1.

    Raises ``InputError`` for a ``share`` that is not from 0 to below 1.
    """

    name = "consistency"

    def __init__(self, share: float = SHARE):
        if not isinstance(share, Real) or not 0 <= share < 1:
            raise InputError(
                f"consistency:{shown(share)} is a share of the picture: give 0 to 0.99."
            )
        self._share = share

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        inputs: dict[int, tuple[Image.Image | None, Tensor | None]] = {}
        for pair in pairs:
            if id(pair.case) not in inputs:
                case = pair.case
                inputs[id(case)] = (case.source and case.source(), may_change(case))
        return torch.tensor([self._score(pair, *inputs[id(pair.case)]) for pair in pairs])

    def _score(self, pair: Pair, source: Image.Image | None, free: Tensor | None) -> float:
        if source is None:
            return 1.0
        kept = kept_cells(source, pair.picture, pair.case.prompt.initial.grid)
        if free is not None:
            left = kept[~free]
        else:
            count = max(1, round((1 - self._share) * kept.numel()))
            left = kept.flatten().topk(count).values
        return float(left.mean()) if left.numel() else 1.0


def may_change(case: Case) -> Tensor | None:
    """(H, W) bool: the image tokens that the edit may change; ``None`` where nothing says."""
    if case.changes is not None and (cells := case.changes()) is not None:
        return cells[0]
    before, target = case.prompt.image, case.target
    if before is None or target is None or before.shape != target.image.shape:
        return None
    return (before != target.image)[0].cpu()


def kept_cells(before: Image.Image, after: Image.Image, grid: tuple[int, int]) -> Tensor:
    """(H, W) float32 of a ``grid``: 1 for cells that are alike, 0 where they differ by
    :data:`LOST` or more."""
    same_size = before.convert("RGB").resize(after.size, Image.Resampling.BILINEAR)
    first, second = (np.asarray(p.convert("RGB"), np.float32) / 255 for p in (same_size, after))
    difference = torch.from_numpy(np.abs(first - second).max(axis=-1))
    return (1 - F.adaptive_avg_pool2d(difference[None], grid)[0] / LOST).clamp(0, 1)

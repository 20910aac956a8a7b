"""The loss on items that are not trained on, with masks that are always the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...mmp_core.checkpoint.load import Model
from ..cases import Case
from ..data.apart import origin_of
from ..loop.ranks import Ranks
from .batches import group_by_shape, masked, stack
from .loss import masked_losses
from .settings import SFTSettings

MOST_CASES = 128
"""Of more cases, so many are measured, evenly spread."""
_SEQUENCES, _MOST_MASKS = 64, 8
_NOTHING_DROPPED = SFTSettings(drop_text=0.0, drop_image=0.0, drop_both=0.0)


@torch.no_grad()
def fixed_loss(
    model: Model,
    cases: Sequence[Case],
    *,
    micro_batch: int,
    bf16: bool = False,
    ranks: Ranks | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> float:
    """The mean loss of ``cases``, as :func:`~.loss.masked_losses` defines it, nothing dropped.

    Each case is masked in several ways, fewer where there are many cases, which depend on its
    instruction and pictures alone: what is measured at two steps, or in two runs, can be compared.
    """
    ranks = ranks or Ranks()
    count = min(len(cases), MOST_CASES)
    spread = [cases[number * len(cases) // count] for number in range(count)]
    ways = max(1, min(_MOST_MASKS, _SEQUENCES // count))
    singles = [
        masked(case, _NOTHING_DROPPED, _seed(case, way)) for case in spread for way in range(ways)
    ]
    parts = [
        stack(group[start : start + micro_batch])
        for group in group_by_shape(singles[ranks.index :: ranks.count])
        for start in range(0, len(group), micro_batch)
    ]
    total, device = 0.0, model.device
    for number, part in enumerate(parts):
        if progress:
            progress(number, len(parts))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = masked_losses(model.transformer, model.layout, part.to(device))
        total += float(losses.text + losses.image)
    (total,) = ranks.sum([total])
    return total / len(singles)


def _seed(case: Case, way: int) -> int:
    digest = hashlib.sha256(f"{origin_of(case)} {case.instruction} {way}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1

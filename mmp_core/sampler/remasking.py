"""Remasking policies: which of the predicted text tokens are unmasked first. Knows no torch, so
that settings and options can be declared from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from .positions import MaskedPositions

Remasking = Callable[["MaskedPositions", "Tensor", "Sequence[Generator | None]"], "Tensor"]
"""Positions, the log-odds of their tokens (B, n) float32 and one generator per sample to a ranking
(B, n) float32: the highest are unmasked, the others stay masked."""


def low_confidence(
    positions: MaskedPositions, log_odds: Tensor, generators: Sequence[Generator | None]
) -> Tensor:
    """Keep those of low confidence masked (LLaDA, arXiv 2502.09992)."""
    return log_odds


def random(
    positions: MaskedPositions, log_odds: Tensor, generators: Sequence[Generator | None]
) -> Tensor:
    """Unmask in random order, whatever the confidence."""
    return positions.uniform(generators)


REMASKING: dict[str, Remasking] = {"low_confidence": low_confidence, "random": random}
"""By the names that :class:`SamplerSettings` takes; a new policy is one more line here."""

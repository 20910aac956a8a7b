"""The undecided positions of one modality, and the random numbers drawn for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..state import MASKED

Draw = Callable[[torch.Generator | None, int], Tensor]
"""Generator and number of positions to random numbers (positions, …)."""


@dataclass(frozen=True)
class MaskedPositions:
    """Undecided positions of a batch, one row of indices per sample.

    ``tokens``: (B, N) int64 that the positions index. ``counts``: positions per sample.
    ``index``: (B, n) int64, n the largest count; each row starts with the sample's undecided
    positions in order, as many as counted, and is filled up with others.
    ``valid``: (B, n) bool, which are counted.
    """

    tokens: Tensor
    counts: tuple[int, ...]
    index: Tensor
    valid: Tensor

    @classmethod
    def of(cls, tokens: Tensor, counts: Sequence[int] | None, on_device: Tensor) -> MaskedPositions:
        """``counts`` (and the same as a tensor (B,)): undecided positions per sample, or 0 to
        leave a sample alone; ``None`` reads them back from the device."""
        undecided = tokens == MASKED
        if counts is None:
            on_device = undecided.sum(dim=1)
            counts = on_device.tolist()
        order = undecided.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        index = order[:, : max(counts)]
        rank = torch.arange(index.shape[1], device=tokens.device)
        return cls(tokens, tuple(counts), index, rank < on_device[:, None])

    def fill(self, values: Tensor, elsewhere: Tensor) -> Tensor:
        """(B, N): ``values`` (B, n) at the counted positions, ``elsewhere`` (B, N) at others."""
        values = torch.where(self.valid, values, elsewhere.gather(1, self.index))
        return elsewhere.scatter(1, self.index, values)

    def draw(self, draw: Draw, generators: Sequence[torch.Generator | None]) -> Tensor:
        """(B, n, …) random numbers, each sample's drawn from its own generator for its own
        positions only, so that the other samples of the batch do not matter."""
        parts = [draw(g, count) for g, count in zip(generators, self.counts, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=0.5)

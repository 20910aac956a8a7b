"""The undecided positions of one modality, and the random numbers drawn for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..state import MASKED

Draw = Callable[[torch.Generator | None, int], Tensor]
"""Generator and number of rows to random numbers (rows, …)."""


@dataclass(frozen=True)
class Rows:
    """Undecided positions of a batch, one row of indices per sample.

    ``tokens``: (B, N) int64 that the positions index. ``counts``: undecided ones per sample.
    ``index``: (B, n) int64, n the largest count; each row starts with the sample's undecided
    positions in order and is filled up with decided ones. ``valid``: (B, n) bool, which are which.
    """

    tokens: Tensor
    counts: tuple[int, ...]
    index: Tensor
    valid: Tensor

    @classmethod
    def of(cls, tokens: Tensor, counts: Sequence[int] | None = None) -> Rows:
        """``counts`` spares reading them back from the device where they are known."""
        undecided = tokens == MASKED
        if counts is None:
            counts = undecided.sum(dim=1).tolist()
        order = undecided.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        index = order[:, : max(counts)]
        return cls(tokens, tuple(counts), index, undecided.gather(1, index))

    def fill(self, values: Tensor, elsewhere: Tensor) -> Tensor:
        """(B, N): ``values`` (B, n) at the undecided positions, ``elsewhere`` (B, N) at others."""
        values = torch.where(self.valid, values, elsewhere.gather(1, self.index))
        return elsewhere.scatter(1, self.index, values)

    def draw(self, draw: Draw, generators: Sequence[torch.Generator | None]) -> Tensor:
        """(B, n, …) random numbers, each sample's drawn from its own generator for its own
        undecided positions only, so that a batch's other samples do not matter."""
        parts = [draw(g, count) for g, count in zip(generators, self.counts, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=0.5)

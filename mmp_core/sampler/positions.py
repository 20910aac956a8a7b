"""The masked positions of one modality, and the random numbers drawn for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..state import MASKED

Generators = Sequence[torch.Generator | None]
"""One per sample of the batch; ``None`` is torch's global generator."""


def seeded_generators(seeds: Sequence[int | None], device: torch.device) -> Generators:
    """A generator per sample; ``None`` for a seed of ``None``."""
    return [None if seed is None else torch.Generator(device).manual_seed(seed) for seed in seeds]


def masked_counts(tokens: Tensor) -> tuple[int, ...]:
    """Masked tokens per sample of (B, …), read back from the device."""
    return tuple((tokens == MASKED).flatten(1).sum(dim=1).tolist())


@dataclass(frozen=True)
class MaskedPositions:
    """Masked positions of a batch, one row of indices per sample.

    ``tokens``: (B, N) int64 that the positions index. ``counts``: positions per sample.
    ``index``: (B, n) int64, n the largest count; each row starts with the sample's masked positions
    in order and is filled up with others. ``valid``: (B, n) bool, which are counted.
    """

    tokens: Tensor
    counts: tuple[int, ...]
    index: Tensor
    valid: Tensor

    @classmethod
    def of(
        cls,
        tokens: Tensor,
        counts: Sequence[int] | None,
        on_device: Tensor,
        until: int | None = None,
    ) -> MaskedPositions:
        """``counts`` (and the same as a tensor (B,)): masked positions per sample, or 0 to leave a
        sample alone; ``None`` reads them back from the device. ``until``: positions from this one
        on count as unmasked."""
        masked = tokens == MASKED
        if until is not None:
            masked[:, until:] = False
        if counts is None:
            on_device = masked.sum(dim=1)
            counts = on_device.tolist()
        order = masked.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        index = order[:, : max(counts)]
        rank = torch.arange(index.shape[1], device=tokens.device)
        return cls(tokens, tuple(counts), index, rank < on_device[:, None])

    def fill(self, values: Tensor, elsewhere: Tensor) -> Tensor:
        """(B, N): ``values`` (B, n) at the counted positions, ``elsewhere`` (B, N) at others."""
        values = torch.where(self.valid, values, elsewhere.gather(1, self.index))
        return elsewhere.scatter(1, self.index, values)

    def highest(self, ranking: Tensor, count: Tensor) -> Tensor:
        """(B, n) bool: the ``count`` (B,) positions of each sample with the highest ``ranking``
        (B, n); of equal ones the first."""
        ranking = torch.where(self.valid, ranking, -torch.inf)
        order = ranking.argsort(dim=1, descending=True, stable=True)
        return self.valid & (order.argsort(dim=1) < count[:, None])

    def uniform(self, generators: Generators) -> Tensor:
        """(B, n) float32 draws from [0, 1)."""
        device = self.tokens.device
        return self.draw(lambda g, count: torch.rand(count, generator=g, device=device), generators)

    def exponential(self, generators: Generators, choices: int) -> Tensor:
        """(B, n, choices) float32 draws from the standard exponential distribution."""

        def draw(generator: torch.Generator | None, count: int) -> Tensor:
            empty = torch.empty(count, choices, device=self.tokens.device)
            return empty.exponential_(generator=generator)

        return self.draw(draw, generators)

    def draw(
        self, draw: Callable[[torch.Generator | None, int], Tensor], generators: Generators
    ) -> Tensor:
        """(B, n, …) random numbers, each sample's drawn from its own generator for its own
        positions only, so that the other samples of the batch do not matter."""
        parts = [draw(g, count) for g, count in zip(generators, self.counts, strict=True)]
        if len(parts) == 1:
            return parts[0][None]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=0.5)

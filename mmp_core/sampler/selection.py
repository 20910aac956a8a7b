"""Selection: which token each undecided position would take, and which are revealed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..model.kernels import ImageLogits, TextLogits
from ..model.kernels.plain import gumbel
from ..state import MASKED, TokenState
from .positions import MaskedPositions
from .schedule import PlannedStep
from .settings import SamplerSettings

SURE = 0.9
"""Probability from which on speed "fast" reveals a token before its turn."""

Generators = Sequence[torch.Generator | None]
Logits = Callable[[Tensor], Tensor | TextLogits | ImageLogits]
"""Positions (B, n) to logits (B, n, choices), as the guidance of the same preset gives them.
Asking runs the model; so ask only where needed."""


@dataclass(frozen=True)
class TokenUpdate:
    """What one step decided for one modality, (B, N) each.

    ``guess``: a token everywhere, decided ones kept. ``confidence``: float32, 1 where decided.
    ``revealed``: bool. ``after``: tokens after the step.
    """

    guess: Tensor
    confidence: Tensor
    revealed: Tensor
    after: Tensor


class Selection(Protocol):
    """Turns logits at ``positions`` into decisions.

    ``before``: no decision, with the last guess, which stays at other positions. ``quota`` and
    ``masked``: (B,) int64 on the model's device, see ``PlannedStep``.
    """

    def text(
        self,
        positions: MaskedPositions,
        before: TokenUpdate,
        logits: Logits,
        quota: Tensor,
        step: PlannedStep,
    ) -> TokenUpdate: ...

    def image(
        self,
        positions: MaskedPositions,
        before: TokenUpdate,
        logits: Logits,
        masked: Tensor,
        step: PlannedStep,
    ) -> TokenUpdate: ...

    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        """The final state, from the one after the last step and the last step's guess."""
        ...


def generators(seeds: Sequence[int | None], device: torch.device) -> list[torch.Generator | None]:
    """One per sample; ``None``, torch's global generator, for a seed of ``None``."""
    return [None if seed is None else torch.Generator(device).manual_seed(seed) for seed in seeds]


class CorrectedSelection:
    """Gumbel-max choices and confidence-ranked reveals in float32, one random stream per sample.

    ``first_text_id``: id of the first of the text choices.
    """

    def __init__(self, settings: SamplerSettings, generators: Generators, first_text_id: int):
        self.settings, self.generators, self.first_text_id = settings, generators, first_text_id

    def text(
        self,
        positions: MaskedPositions,
        before: TokenUpdate,
        logits: Logits,
        quota: Tensor,
        step: PlannedStep,
    ) -> TokenUpdate:
        found, temperature = logits(positions.index), self.settings.text_temperature
        noise = self._exponential(positions, found.choices) if temperature else None
        best, confidence = found.choose(temperature, noise)
        ranking = confidence
        if self.settings.remasking == "random":
            ranking = positions.draw(_uniform, self.generators)
        probability = confidence.sigmoid()
        revealed = highest(positions, ranking, quota) | self.also(positions, probability)
        return update_at(positions, before, best + self.first_text_id, probability, revealed)

    def image(
        self,
        positions: MaskedPositions,
        before: TokenUpdate,
        logits: Logits,
        masked: Tensor,
        step: PlannedStep,
    ) -> TokenUpdate:
        found, random = logits(positions.index), self.settings.image_temperature
        noise = self._exponential(positions, found.choices) if random else None
        sampled, confidence = found.choose(noise)
        ranking = confidence
        if step.image_noise:
            ranking = ranking + step.image_noise * gumbel(self._exponential(positions, 1))[..., 0]
        probability = confidence.exp()
        planned = highest(positions, ranking, positions.valid.sum(dim=1) - masked)
        return update_at(
            positions, before, sampled, probability, planned | self.also(positions, probability)
        )

    def also(self, positions: MaskedPositions, probability: Tensor) -> Tensor:
        """(B, n) bool: what is revealed besides what the plan asks for."""
        return torch.zeros_like(positions.valid)

    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        return state

    def _exponential(self, positions: MaskedPositions, choices: int) -> Tensor:
        """(B, n, choices) float32 draws."""

        def exponential(generator: torch.Generator, count: int) -> Tensor:
            empty = torch.empty(count, choices, device=generator.device)
            return empty.exponential_(generator=generator)

        return positions.draw(exponential, self.generators)


class ConfidentSelection(CorrectedSelection):
    """Reveals also all that the model is sure of."""

    def also(self, positions: MaskedPositions, probability: Tensor) -> Tensor:
        return positions.valid & (probability >= SURE)


def _uniform(generator: torch.Generator, count: int) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def highest(positions: MaskedPositions, ranking: Tensor, count: Tensor) -> Tensor:
    """(B, n) bool: the ``count`` (B,) positions of each sample that rank highest."""
    order = torch.where(positions.valid, ranking, -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    return positions.valid & (order.argsort(dim=1) < count[:, None])


def update_at(
    positions: MaskedPositions,
    before: TokenUpdate,
    tokens: Tensor,
    confidence: Tensor,
    revealed: Tensor,
) -> TokenUpdate:
    """``before``, replaced by what was found at ``positions`` (B, n)."""
    guess = positions.fill(tokens, before.guess)
    revealed = positions.fill(revealed, before.revealed)
    return TokenUpdate(
        guess=guess,
        confidence=positions.fill(confidence.float(), before.confidence),
        revealed=revealed,
        after=torch.where(revealed, guess, positions.tokens),
    )


def unchanged(tokens: Tensor, guess: Tensor, confidence: Tensor) -> TokenUpdate:
    """No decision: ``tokens`` as they are, with the last guess and confidence where undecided."""
    undecided = tokens == MASKED
    return TokenUpdate(
        guess=torch.where(undecided, guess, tokens),
        confidence=torch.where(undecided, confidence, 1.0),
        revealed=torch.zeros_like(undecided),
        after=tokens,
    )

"""Selection: which token each masked position would take, and which are unmasked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..model.kernels import ImageLogits, TextLogits
from ..model.kernels.plain import gumbel
from ..state import MASKED, TokenState
from .positions import Generators, MaskedPositions
from .remasking import REMASKING
from .schedule import PlannedStep
from .settings import SamplerSettings

SURE = 0.9
"""Probability (0 … 1) from which on speed "fast" unmasks a token before its turn (the threshold of
Fast-dLLM, arXiv 2505.22618)."""

Text = TypeVar("Text", contravariant=True)
Image = TypeVar("Image", contravariant=True)


@dataclass(frozen=True)
class TokenUpdate:
    """What one step did to one modality, (B, N) each.

    ``guess``: a token everywhere; unmasked ones as they were. ``confidence``: float32, 1 where a
    token was unmasked before the step. ``revealed``: bool, what the step unmasked. ``after``: the
    tokens after the step.
    """

    guess: Tensor
    confidence: Tensor
    revealed: Tensor
    after: Tensor


class Selection(Protocol[Text, Image]):
    """Turns logits into tokens and chooses those that are unmasked.

    ``Text`` and ``Image``: the logits it takes, which a guidance must give. ``positions``: those to
    predict. ``before``: no update, with the last guess, which stays at other positions.
    ``logits``: positions (B, n) to their logits; calling it runs the model, so call it only where
    needed. ``quota``, ``masked``: (B,) int64 on the model's device; see :class:`.plan.Targets`.
    """

    def text(
        self,
        positions: MaskedPositions,
        before: TokenUpdate,
        logits: Callable[[Tensor], Text],
        quota: Tensor,
        step: PlannedStep,
    ) -> TokenUpdate: ...

    def image(
        self,
        positions: MaskedPositions,
        before: TokenUpdate,
        logits: Callable[[Tensor], Image],
        masked: Tensor,
        step: PlannedStep,
    ) -> TokenUpdate: ...

    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        """The final state, from the one after the last step and the last step's guess."""
        ...


class CorrectedSelection:
    """Gumbel-max tokens, unmasked by confidence, in float32, with one random stream per sample.

    ``sure``: probability (0 … 1) from which on a token is unmasked before its turn; ``None``
    unmasks none early.
    """

    def __init__(
        self, settings: SamplerSettings, generators: Generators, sure: float | None = None
    ):
        self.settings, self.generators, self.sure = settings, generators, sure

    def text(
        self,
        positions: MaskedPositions,
        before: TokenUpdate,
        logits: Callable[[Tensor], TextLogits],
        quota: Tensor,
        step: PlannedStep,
    ) -> TokenUpdate:
        predicted, temperature = logits(positions.index), self.settings.text_temperature
        noise = positions.exponential(self.generators, predicted.choices) if temperature else None
        tokens, log_odds = predicted.choose(temperature, noise)
        ranking = REMASKING[self.settings.remasking](positions, log_odds, self.generators)
        revealed = positions.highest(ranking, quota)
        return self._update(positions, before, tokens, log_odds.sigmoid(), revealed)

    def image(
        self,
        positions: MaskedPositions,
        before: TokenUpdate,
        logits: Callable[[Tensor], ImageLogits],
        masked: Tensor,
        step: PlannedStep,
    ) -> TokenUpdate:
        predicted, random = logits(positions.index), self.settings.image_temperature
        noise = positions.exponential(self.generators, predicted.choices) if random else None
        tokens, log_p = predicted.choose(noise)
        ranking = log_p
        if step.image_noise:
            draws = positions.exponential(self.generators, 1)[..., 0]
            ranking = log_p + step.image_noise * gumbel(draws)
        revealed = positions.highest(ranking, positions.valid.sum(dim=1) - masked)
        return self._update(positions, before, tokens, log_p.exp(), revealed)

    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        return state

    def _update(
        self,
        positions: MaskedPositions,
        before: TokenUpdate,
        tokens: Tensor,
        probability: Tensor,
        revealed: Tensor,
    ) -> TokenUpdate:
        if self.sure is not None:
            revealed = revealed | (positions.valid & (probability >= self.sure))
        return update_at(positions, before, tokens, probability, revealed)


def update_at(
    positions: MaskedPositions,
    before: TokenUpdate,
    tokens: Tensor,
    confidence: Tensor,
    revealed: Tensor,
) -> TokenUpdate:
    """``before``, replaced at ``positions`` by what was predicted there, (B, n) each."""
    guess = positions.fill(tokens, before.guess)
    revealed = positions.fill(revealed, before.revealed)
    return TokenUpdate(
        guess=guess,
        confidence=positions.fill(confidence.float(), before.confidence),
        revealed=revealed,
        after=torch.where(revealed, guess, positions.tokens),
    )


def unchanged(tokens: Tensor, guess: Tensor, confidence: Tensor) -> TokenUpdate:
    """No update: ``tokens`` as they are, with the last guess and confidence where masked."""
    masked = tokens == MASKED
    return TokenUpdate(
        guess=torch.where(masked, guess, tokens),
        confidence=torch.where(masked, confidence, 1.0),
        revealed=torch.zeros_like(masked),
        after=tokens,
    )

"""Selection: which token each masked position would take, and which are unmasked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..model.kernels import ImageLogits, TextLogits
from ..model.kernels.plain import gumbel
from ..state import MASKED, TokenState
from .plan import Targets
from .positions import Generators, MaskedPositions
from .remasking import REMASKING
from .settings import SamplerSettings

SURE = 0.9
"""Probability (0 … 1) from which on speed "fast" unmasks a token before its turn (the threshold of
Fast-dLLM, arXiv 2505.22618)."""

Text = TypeVar("Text", contravariant=True)
Image = TypeVar("Image", contravariant=True)


@dataclass(frozen=True)
class TokenUpdate:
    """What one step did to one modality, (B, N) each. ``guess``: a token everywhere; unmasked ones
    as they were. ``confidence``: float32, 1 where a token was unmasked before the step.
    ``revealed``: bool, what the step unmasked. ``after``: the tokens after the step."""

    guess: Tensor
    confidence: Tensor
    revealed: Tensor
    after: Tensor

    @classmethod
    def none(cls, tokens: Tensor, guess: Tensor, confidence: Tensor) -> TokenUpdate:
        """``tokens`` as they are, with the last guess and confidence where masked."""
        masked = tokens == MASKED
        return cls(
            guess=torch.where(masked, guess, tokens),
            confidence=torch.where(masked, confidence, 1.0),
            revealed=torch.zeros_like(masked),
            after=tokens,
        )

    def at(
        self, positions: MaskedPositions, tokens: Tensor, confidence: Tensor, revealed: Tensor
    ) -> TokenUpdate:
        """This, replaced at ``positions`` by what was predicted there, (B, n) each."""
        guess = positions.fill(tokens, self.guess)
        revealed = positions.fill(revealed, self.revealed)
        return TokenUpdate(
            guess=guess,
            confidence=positions.fill(confidence.float(), self.confidence),
            revealed=revealed,
            after=torch.where(revealed, guess, positions.tokens),
        )

    def ended(self, ends: Sequence[int], until: int) -> TokenUpdate:
        """This, with the rest of each text unmasked to ``ends[0]`` where all before ``until`` is
        unmasked and one of ``ends`` is there."""
        begun, rest = self.after[:, :until], self.after == MASKED
        over = torch.isin(begun, begun.new_tensor(ends)).any(dim=1) & (begun != MASKED).all(dim=1)
        rest &= over[:, None]
        return TokenUpdate(
            guess=torch.where(rest, ends[0], self.guess),
            confidence=self.confidence,
            revealed=self.revealed | rest,
            after=torch.where(rest, ends[0], self.after),
        )


class Selection(Protocol[Text, Image]):
    """Turns logits into tokens and chooses those that are unmasked.

    ``Text`` and ``Image``: the logits it takes, which the guidance must give. ``before``: no
    update, with the last guess, which stays at positions that are not predicted. ``logits``:
    positions (B, n) to their logits; calling it runs the model, so call it only where needed.
    """

    def text(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], Text]
    ) -> TokenUpdate: ...

    def image(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], Image]
    ) -> TokenUpdate: ...

    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        """The final state, from the one after the last step and the last step's guess."""
        ...


class CorrectedSelection:
    """Gumbel-max tokens, unmasked by confidence, in float32, with one random stream per sample.
    ``sure``: probability (0 … 1) from which on a token is unmasked before its turn; by default none
    is. ``ends``: ids that end a text; once a block of it holds one, the rest is the first of
    them."""

    def __init__(
        self,
        settings: SamplerSettings,
        generators: Generators,
        sure: float = math.inf,
        ends: Sequence[int] = (),
    ):
        self.settings, self.generators, self.sure, self.ends = settings, generators, sure, ends

    def text(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], TextLogits]
    ) -> TokenUpdate:
        positions, temperature = targets.positions, self.settings.text_temperature
        predicted = logits(positions.index)
        noise = positions.exponential(self.generators, predicted.choices) if temperature else None
        tokens, log_odds = predicted.choose(temperature, noise)
        ranking = REMASKING[self.settings.remasking](positions, log_odds, self.generators)
        probability = log_odds.sigmoid()
        revealed = positions.highest(ranking, targets.count) | self._early(positions, probability)
        update = before.at(positions, tokens, probability, revealed)
        if self.ends and targets.until is not None:
            return update.ended(self.ends, targets.until)
        return update

    def image(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], ImageLogits]
    ) -> TokenUpdate:
        positions, random = targets.positions, self.settings.image_temperature
        predicted = logits(positions.index)
        noise = positions.exponential(self.generators, predicted.choices) if random else None
        tokens, log_p = predicted.choose(noise)
        ranking = log_p
        if targets.noise:
            draws = positions.exponential(self.generators, 1)[..., 0]
            ranking = log_p + targets.noise * gumbel(draws)
        probability, count = log_p.exp(), positions.valid.sum(dim=1) - targets.count
        revealed = positions.highest(ranking, count) | self._early(positions, probability)
        return before.at(positions, tokens, probability, revealed)

    def _early(self, positions: MaskedPositions, probability: Tensor) -> Tensor:
        return positions.valid & (probability >= self.sure)

    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        return state

"""What the released samplers share, as policies: the same tokens and the same random draws.

Unlike the corrected policies: random numbers are drawn for whole regions in the dtype of the
logits; text may be any id, image codes and the mask included; the image's mask ratio follows the
loop step and the whole grid; image steps that round to the same loop step are one; one image code
is never unmasked.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from ..model.kernels.plain import log_odds
from ..state import MASKED, Prompt, TokenState
from .plan import Plan, Targets
from .policies import DenoisingModel, Policies
from .positions import Generators, MaskedPositions, seeded_generators
from .schedule import Counts, PlannedStep
from .selection import TokenUpdate
from .settings import SamplerSettings

Fill = Callable[..., Tensor]
"""An in-place random method of tensors, such as ``Tensor.uniform_``."""
_OFF_AT_0 = (
    "text_guidance",
    "image_guidance",
    "joint_guidance",
    "reasoning_guidance",
    "block_length",
)


def upstream_policies(model: DenoisingModel, prompt: Prompt, settings: SamplerSettings) -> Policies:
    """The sampler of the model's authors. Raises ``InputError`` for settings that it does not
    know."""
    variant = model.variant
    variant.check_upstream_speed(settings.speed)
    policies = variant.upstream_policies(model, prompt, settings)
    for name in _OFF_AT_0:
        if getattr(settings, name) and name not in variant.upstream_knows:
            raise InputError(
                f"{name} must be 0 with the upstream preset on variant {variant}, whose reference "
                "does not know it."
            )
    return policies


def upstream_plan(
    quotas: list[Counts], prompt: Prompt, settings: SamplerSettings, device: torch.device
) -> Plan:
    """One step per text step. ``quotas``: text tokens to unmask at each, per sample."""
    cells, total = prompt.initial.image[0].numel(), settings.text_steps
    window = torch.linspace(total // 4, total - 1, settings.image_steps)
    image_at = set(window.round().int().tolist())
    steps = []
    for index, quota in enumerate(quotas):
        step = PlannedStep(text_quota=quota)
        if index in image_at:
            progress = (index + 1) / total
            masked = int((cells * torch.cos(torch.tensor(progress) * math.pi / 2)).floor())
            step = replace(
                step,
                image_masked_after=(masked,) * len(quota),
                image_noise=settings.image_temperature * (1.0 - progress),
            )
        steps.append(step)
    return Plan.of(steps, prompt.batch, device)


class UpstreamSelection(ABC):
    """Noise over whole regions, ranking, and what is written back. ``vocabulary``: number of ids.
    ``dtype``: the model's, which most draws are made in; ``noise_dtype``: that of the text's
    noise."""

    def __init__(self, model: DenoisingModel, prompt: Prompt, settings: SamplerSettings):
        self.layout, self.settings = model.layout, settings
        self.generators: Generators = seeded_generators(settings.seeds(prompt.batch), model.device)
        self.vocabulary = model.transformer.config.embedding_size
        self.dtype = self.noise_dtype = model.transformer.dtype

    @abstractmethod
    def text_draws(
        self, positions: MaskedPositions, dtype: torch.dtype, choices: tuple[int, ...] = ()
    ) -> Tensor:
        """(B, n, *choices) uniform draws for the text."""

    @abstractmethod
    def noisy(self, scores: Tensor, uniform: Tensor) -> Tensor:
        """The text's logits (B, n, ids) with noise made of ``uniform``."""

    @abstractmethod
    def image_race(self, positions: MaskedPositions) -> Tensor | None:
        """(B, n, codes): what probabilities are divided by before the highest is taken."""

    @abstractmethod
    def masking(self, selected: Tensor, keep: Tensor, noise: float) -> Tensor:
        """(B, N) bool: the codes that are masked again, about ``keep`` (B, 1) of each sample.
        ``selected``: (B, N) probability of each code, the dtype's largest where it was unmasked
        before. ``noise``: scale of the noise on their ranking."""

    @abstractmethod
    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        """The final state, from the one after the last step and the last step's guess."""

    def text(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], Tensor]
    ) -> TokenUpdate:
        positions = targets.positions
        noise = random = None
        if self.settings.text_temperature:
            noise = self.text_draws(positions, self.noise_dtype, (self.vocabulary,))
        if self.settings.remasking == "random":
            random = self.text_draws(positions, torch.float32)
        if not positions.index.shape[1]:
            return before
        scores = logits(positions.index)
        best = (scores if noise is None else self.noisy(scores, noise)).argmax(dim=-1)
        best = best.to(scores.device)
        odds = log_odds(scores.float(), best)
        ranking, confidence = (odds, odds.sigmoid()) if random is None else (random, random)
        tokens = torch.where(best == self.layout.mask_id, MASKED, best)
        return before.at(positions, tokens, confidence, positions.highest(ranking, targets.count))

    def image(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], Tensor]
    ) -> TokenUpdate:
        positions, tokens = targets.positions, targets.positions.tokens
        masked_before = tokens == MASKED
        known = torch.finfo(self.dtype).max
        selected = torch.full_like(tokens, known, dtype=self.dtype)
        race, sampled = self.image_race(positions), tokens
        if positions.index.shape[1]:
            probabilities = logits(positions.index).softmax(dim=-1)
            best = (probabilities if race is None else probabilities / race).argmax(dim=-1)
            sampled = positions.fill(best, tokens)
            selected = positions.fill(probabilities.gather(-1, best[..., None])[..., 0], selected)
        keep = masked_before.sum(dim=1).sub(1).minimum(targets.count)
        keep = keep.clamp(1).clamp(max=tokens.shape[1] - 1)
        masking = self.masking(selected, keep[:, None], targets.noise)
        return TokenUpdate(
            guess=sampled,
            confidence=torch.where(masked_before, selected.float(), 1.0),
            revealed=masked_before & ~masking,
            after=torch.where(masking, MASKED, sampled),
        )

    def race_of_multinomial(self, positions: MaskedPositions) -> Tensor:
        """What ``torch.multinomial`` over (N, codes) divides by, at ``positions``."""
        shape = (positions.tokens.shape[1], self.layout.codebook_size)
        return region_draws(
            positions.index, shape, self.dtype, Tensor.exponential_, self.generators
        )


def place_of_float64(device: torch.device) -> torch.device:
    """``device`` itself if it computes in float64, which Apple's and Intel's GPUs do not."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def region_draws(
    index: Tensor, shape: tuple[int, ...], dtype: torch.dtype, fill: Fill, generators: Generators
) -> Tensor:
    """(B, n, …): random numbers drawn for a whole region ``shape`` per sample, those at ``index``.
    The reference draws for unmasked positions, too, so the random stream depends on them. Where the
    device knows no float64, such numbers are on the CPU."""
    parts = []
    place = place_of_float64(index.device) if dtype == torch.float64 else index.device
    for row, generator in zip(index.to(place), generators, strict=True):
        region = torch.empty(shape, dtype=dtype, device=place)
        parts.append(fill(region, generator=generator)[row])
    return torch.stack(parts)

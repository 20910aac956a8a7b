"""What the denoising loop asks, put together for a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..model.transformer import MaskedDiffusionTransformer
from ..state import MASKED, Prompt
from ..variants.base import Layout
from .cache import CachePolicy
from .guidance import CONDITIONAL, CorrectedGuidance, Guidance
from .schedule import AdaptivePlan, Plan, corrected_steps
from .selection import ConfidentSelection, CorrectedSelection, Selection, generators
from .settings import SamplerSettings


class DenoisingModel(Protocol):
    """What :func:`denoise` needs of a model."""

    transformer: MaskedDiffusionTransformer
    layout: Layout
    device: torch.device


@dataclass(frozen=True)
class Policies:
    """``plan``: how many are revealed when. ``guidance``: which forwards. ``selection``: which are
    revealed. ``cache``: what of a forward is computed anew; ``None`` for all."""

    plan: Plan
    guidance: Guidance
    selection: Selection
    cache: CachePolicy | None = None


def corrected_policies(
    model: DenoisingModel, prompt: Prompt, settings: SamplerSettings
) -> Policies:
    """The default: see :class:`SamplerSettings`."""
    seeds = [_some_seed() if s is None else s for s in settings.seeds(prompt.batch)]
    text, image = prompt.initial.text, prompt.initial.image
    steps = corrected_steps(masked_counts(text), masked_counts(image), settings)
    guidance = CorrectedGuidance(model.layout, prompt, settings)
    streams = generators(seeds, model.device)
    plan, select, cache = Plan, CorrectedSelection, None
    if settings.reveals_early:
        plan, select = AdaptivePlan, ConfidentSelection
    if settings.reuses:
        text_branches = {CONDITIONAL, *guidance.text_scales}
        cache = CachePolicy(text_branches, {CONDITIONAL, *guidance.image_scales})
    return Policies(
        plan.of(steps, prompt.batch, model.device),
        guidance,
        select(settings, streams, guidance.text_choices.start),
        cache,
    )


def _some_seed() -> int:
    return int(torch.randint(2**63 - 1, ()))


def masked_counts(tokens: Tensor) -> tuple[int, ...]:
    """Masked tokens per sample of (B, …)."""
    return tuple((tokens == MASKED).flatten(1).sum(dim=1).tolist())

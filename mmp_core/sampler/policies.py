"""What the denoising loop asks, put together for a prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from ..model.kernels import ImageLogits, TextLogits
from ..model.transformer import MaskedDiffusionTransformer
from ..state import Prompt
from ..variants.base import Layout, Variant
from .cache import PROMPT_EVERY, Cache, CachePolicy, prompt_length
from .guidance import CONDITIONAL, CorrectedGuidance, Guidance
from .plan import AdaptivePlan, Plan
from .positions import masked_counts, seeded_generators
from .schedule import Counts, corrected_steps
from .selection import SURE, CorrectedSelection, Selection
from .settings import SamplerSettings

Text = TypeVar("Text")
Image = TypeVar("Image")


class DenoisingModel(Protocol):
    """What :func:`denoise` needs of a model."""

    transformer: MaskedDiffusionTransformer
    layout: Layout
    variant: Variant
    device: torch.device


@dataclass(frozen=True)
class Policies(Generic[Text, Image]):
    """``plan``: how many are unmasked when. ``guidance``: which branches are run, and how their
    logits are combined. ``selection``: which are unmasked; it takes the logits that ``guidance``
    gives. ``cache``: what of a forward is computed anew; ``None`` for all."""

    plan: Plan
    guidance: Guidance[Text, Image]
    selection: Selection[Text, Image]
    cache: Cache | None = None


def corrected_policies(
    model: DenoisingModel, prompt: Prompt, settings: SamplerSettings
) -> Policies[TextLogits, ImageLogits]:
    """The default: see :class:`SamplerSettings`."""
    seeds = [
        int(torch.randint(2**63 - 1, ())) if seed is None else seed
        for seed in settings.seeds(prompt.batch)
    ]
    streams, early = seeded_generators(seeds, model.device), settings.reveals_early
    masked = masked_counts(prompt.initial.text), masked_counts(prompt.initial.image)
    blocks: list[Counts] = []
    if settings.block_length:
        blocks = [
            masked_counts(part) for part in prompt.initial.text.split(settings.block_length, 1)
        ]
    ends = model.layout.ends if len(blocks) > 1 else ()
    plan = (AdaptivePlan if early or ends else Plan).of(
        corrected_steps(*masked, settings, blocks), prompt.batch, model.device
    )
    guidance = CorrectedGuidance(model.layout, prompt, settings)
    selection = CorrectedSelection(settings, streams, SURE if early else math.inf, ends)
    cache = None
    if settings.reuses:
        text_branches = {CONDITIONAL, *guidance.text_scales}
        image_branches = {CONDITIONAL, *guidance.image_scales}
        prompts = {name: prompt_length(branch) for name, branch in guidance.branches.items()}
        prompt_every = PROMPT_EVERY if early else 1
        cache = CachePolicy(text_branches, image_branches, prompts, prompt_every=prompt_every)
    return Policies(plan, guidance, selection, cache)

"""The text sampler that LLaDA released, as Lumina-DiMOO and MMaDA-8B keep it: block after block, by
float64 probabilities, with noise for every id of the whole row from the global generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from ..state import MASKED, Prompt
from ..variants.base import ModelInput
from .guidance import CONDITIONAL
from .plan import Targets
from .policies import DenoisingModel
from .positions import masked_counts
from .predictor import BranchOutputs
from .schedule import PlannedStep
from .selection import TokenUpdate
from .settings import SamplerSettings
from .upstream import place_of_float64, region_draws


def block_steps(prompt: Prompt, settings: SamplerSettings) -> list[PlannedStep]:
    """The steps of a text: block after block, each in as many steps. Raises ``InputError`` for
    settings at which the released code stops."""
    length, steps = prompt.initial.text.shape[1], settings.text_steps
    block = block_of(length, settings)
    if length % block or steps % (length // block):
        raise InputError(
            f"text_length {length}, block_length {block} and text_steps {steps} stop the "
            "reference: with the upstream preset the text is made of whole blocks, and each has "
            "as many steps; change them, or use the corrected preset."
        )
    per_block, planned = steps // (length // block), []
    for start in range(0, length, block):
        masked = masked_counts(prompt.initial.text[:, start : start + block])
        for rank in range(per_block):
            quota = tuple(n // per_block + (rank < n % per_block) for n in masked)
            planned.append(PlannedStep(text_quota=quota, text_until=start + block))
    return planned


def block_of(length: int, settings: SamplerSettings) -> int:
    """Tokens of a block, for a text of ``length``."""
    return min(settings.block_length or length, length)


def guided_text(outputs: BranchOutputs, index: Tensor, scale: float, unconditional: str) -> Tensor:
    """Logits (B, n, ids) at text positions ``index`` (B, n), guided away from a branch."""
    conditional = outputs.text_logits(CONDITIONAL, index, slice(None))
    if scale <= 0:
        return conditional
    other = outputs.text_logits(unconditional, index, slice(None))
    return other + (scale + 1) * (conditional - other)


class TextSelection:
    """Chooses the likeliest ids, or with a temperature noisy ones. ``row``: the model's input,
    which the noise is drawn for."""

    def __init__(self, model: DenoisingModel, row: ModelInput, settings: SamplerSettings):
        self.mask_id, self.settings = model.layout.mask_id, settings
        self.places = row.text_positions
        self.region = row.ids.shape[1], model.transformer.config.embedding_size

    def text(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], Tensor]
    ) -> TokenUpdate:
        positions, temperature = targets.positions, self.settings.text_temperature
        places, unseeded = self.places[positions.index], [None] * len(positions.counts)
        noise = random = None
        if temperature:
            noise = region_draws(places, self.region, torch.float64, Tensor.uniform_, unseeded)
        if self.settings.remasking == "random":
            shape = self.region[:1]
            random = region_draws(places, shape, torch.float32, Tensor.uniform_, unseeded)
        if not positions.index.shape[1]:
            return before
        scores = logits(positions.index)
        wide = scores.to(place_of_float64(scores.device)).double()
        noisy = scores if noise is None else wide.exp() / (-noise.log()) ** temperature
        best = noisy.argmax(dim=-1).to(wide.device)
        chances = wide.softmax(dim=-1).gather(-1, best[..., None])[..., 0]
        if wide.device != scores.device:
            best, chances = best.to(scores.device), chances.float().to(scores.device)
        ranking = chances if random is None else random
        tokens = torch.where(best == self.mask_id, MASKED, best)
        return before.at(positions, tokens, ranking, positions.highest(ranking, targets.count))

"""The likelihood of what a step unmasked.

It is that of the conditional branch, at the sampling temperature and among the choices that the
sampler has. With guidance this is the likelihood of the unguided policy, which is the one that is
trained. Which positions are unmasked is not part of it (as in the paper's objective, and in
TraceRL).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from .rollout import ScoredSteps


def image_choices(model: Model) -> slice:
    """Where the image codes stand in the vocabulary."""
    first = model.layout.image_offset
    return slice(first, first + model.layout.codebook_size)


def log_probs(model: Model, steps: ScoredSteps, text_temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs of the tokens unmasked at each step, given the state before it.

    Returns them (K,) float32, text tokens before image tokens, and (K,) int64: which step each
    belongs to. A ``text_temperature`` of 0 has no likelihood; 1 stands in for it. Image codes are
    drawn at temperature 1 whatever the sampler's ``image_temperature``, which scales the noise on
    their order.
    """
    sequence = model.layout.model_input(steps.prompt, steps.state)
    hidden = model.transformer(sequence.ids)
    text = model.layout.text_choices

    def of_modality(
        revealed: Tensor, tokens: Tensor, positions: Tensor, choices: slice, temperature: float
    ) -> tuple[Tensor, Tensor]:
        owner, place = revealed.nonzero(as_tuple=True)
        logits = model.transformer.logits(hidden[owner, positions[place]], choices).float()
        chosen = tokens[owner, place][:, None]
        return (logits / temperature).log_softmax(dim=-1).gather(-1, chosen)[:, 0], owner

    values, owners = zip(
        of_modality(
            steps.text_revealed,
            steps.after.text - text.start,
            sequence.text_positions,
            slice(text.start, text.stop),
            text_temperature or 1.0,
        ),
        of_modality(
            steps.image_revealed.flatten(1),
            steps.after.image.flatten(1),
            sequence.image_positions,
            image_choices(model),
            1.0,
        ),
        strict=True,
    )
    return torch.cat(values), torch.cat(owners)

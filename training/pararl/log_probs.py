"""The likelihood of what a step unmasked.

It is that of the policy that was sampled: of the guided logits where the sampler guides, at its
text temperature and among the choices that it has, so that updates stay on-policy under guidance,
too. Which positions are unmasked is not part of it (as in the paper's objective, and in TraceRL).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.model.kernels import ImageLogits, TextLogits
from ...mmp_core.sampler.guidance import CONDITIONAL, CorrectedGuidance
from ...mmp_core.sampler.predictor import Predictor
from ...mmp_core.sampler.settings import SamplerSettings
from .rollout import ScoredSteps


def log_probs(model: Model, steps: ScoredSteps, settings: SamplerSettings) -> tuple[Tensor, Tensor]:
    """Log-probs of the tokens unmasked at each step, given the state before it.

    Returns them (K,) float32, text tokens before image tokens, and (K,) int64: which step each
    belongs to. ``settings``: the rollouts' sampler; each branch of its guidance is run once. A
    ``text_temperature`` of 0 has no likelihood; 1 stands in for it. Image codes are drawn at
    temperature 1 whatever the ``image_temperature``, which scales the noise on their order.
    """
    guidance = CorrectedGuidance(model.layout, steps.prompt, settings)
    branches = guidance.branches
    predictor = Predictor(model.transformer, model.layout, branches)
    hidden = {name: model.transformer(predictor.ids(name, steps.state)) for name in branches}
    revealed = steps.text_revealed, steps.image_revealed.flatten(1)
    (text_owner, text), (image_owner, image) = (r.nonzero(as_tuple=True) for r in revealed)

    def states(kind: str, scales: Iterable[str], owner: Tensor, place: Tensor) -> list[Tensor]:
        positions = {name: getattr(branches[name], kind) for name in (CONDITIONAL, *scales)}
        return [hidden[name][owner, at[place]] for name, at in positions.items()]

    parts = states("text_positions", guidance.text_scales, text_owner, text)
    scales, words = tuple(guidance.text_scales.values()), guidance.text_choices
    scores = TextLogits(model.transformer, tuple(parts), scales, words, guidance.never).guided()
    chosen = steps.after.text[text_owner, text] - words.start
    values = [_log_prob(scores / (settings.text_temperature or 1.0), chosen)]

    parts = states("image_positions", guidance.image_scales, image_owner, image)
    logits = tuple(model.transformer.logits(part, model.layout.image_choices) for part in parts)
    scores = ImageLogits(logits, tuple(guidance.image_scales.values())).guided()
    values.append(_log_prob(scores, steps.after.image.flatten(1)[image_owner, image]))
    return torch.cat(values), torch.cat((text_owner, image_owner))


def _log_prob(scores: Tensor, chosen: Tensor) -> Tensor:
    """(K,) of ``chosen`` (K,) under ``scores`` (K, choices)."""
    return scores.log_softmax(dim=-1).gather(-1, chosen[:, None])[:, 0]

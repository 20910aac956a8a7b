"""Vary a result: mask those of its tokens again that the model was least sure of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InputError, shown
from .options import python_number
from .outside import check_kind, check_model, field
from .sampler.guidance import CONDITIONAL
from .sampler.policies import DenoisingModel
from .sampler.predictor import BranchOutputs, Predictor
from .state import MASKED, Prompt, TokenState, Trajectory

_SHARE = field(float, 0, 1)


class Confidence(NamedTuple):
    """How sure a model is of each token, 0 to 1: ``text`` (B, T), ``image`` (B, H, W), float32."""

    text: Tensor
    image: Tensor


def confidence_in(trajectory: Trajectory) -> Confidence:
    """With what confidence each token was unmasked, as far as the steps were recorded: of others
    the latest guess before. 1 for tokens that were given at the start."""
    check_kind(trajectory, Trajectory, "trajectory", "a trajectory")
    initial = trajectory.initial
    text, image = (initial.text != MASKED).float(), (initial.image != MASKED).float()
    for step in trajectory:
        text = torch.where(step.state.text == MASKED, step.text_confidence, text)
        image = torch.where(step.state.image == MASKED, step.image_confidence, image)
    return Confidence(text, image)


@torch.no_grad()
def predicted_confidence(
    model: DenoisingModel,
    prompt: Prompt,
    state: TokenState,
    *,
    callback: Callable[[int, int], object] = lambda done, total: None,
) -> Confidence:
    """The probability of each token of ``state`` by one forward of ``prompt`` with the whole answer
    masked: how far the prompt alone decides it. 0 where masked. ``callback`` is called before each
    sample, and may raise."""
    check_model(model, "transformer", "layout", "device")
    check_kind(prompt, Prompt, "prompt", "a prompt")
    check_kind(state, TokenState, "state", "tokens")
    check_kind(callback, Callable, "callback", "a function")
    texts, images = [], []
    layout, choices = model.layout, model.layout.text_choices
    for sample in range(state.batch):
        callback(sample, state.batch)
        which = slice(sample, sample + 1)
        one, tokens = prompt[which].to(model.device), state[which].to(model.device)
        blank = TokenState.masked(1, tokens.text.shape[1], tokens.grid).to(model.device)
        branches = {CONDITIONAL: layout.model_input(one, blank)}
        outputs = BranchOutputs(Predictor(model.transformer, layout, branches), blank)
        flat = tokens.image.flatten(1)
        text, image = torch.zeros(tokens.text.shape), torch.zeros(flat.shape)
        if text.shape[1]:
            every = torch.arange(text.shape[1], device=model.device)[None]
            logits = outputs.text_logits(CONDITIONAL, every, slice(choices.start, choices.stop))
            text = _probability(logits, tokens.text - choices.start)
        if image.shape[1]:
            every = torch.arange(image.shape[1], device=model.device)[None]
            image = _probability(outputs.image_logits(CONDITIONAL, every), flat)
        texts.append(torch.where(tokens.text == MASKED, 0.0, text.to(model.device)).cpu())
        images.append(torch.where(flat == MASKED, 0.0, image.to(model.device)).cpu())
    return Confidence(torch.cat(texts), torch.cat(images).view(state.image.shape))


def _probability(logits: Tensor, tokens: Tensor) -> Tensor:
    index = tokens.clamp(0, logits.shape[-1] - 1)
    return logits.float().softmax(dim=-1).gather(-1, index[..., None])[..., 0]


def varied(
    state: TokenState,
    confidence: Confidence,
    *,
    text: float = 0.0,
    image: float = 0.0,
    end_of_text: int | None = None,
) -> TokenState:
    """Mask a share of the tokens of ``state`` again, those of the least ``confidence`` first.

    ``text``, ``image``: the shares, 0 (nothing) to 1 (everything), rounded up to whole tokens and
    counted in each sample. Tokens after the last word, ``end_of_text``, do not count but for 1.
    Already masked ones stay masked. Raises ``InputError`` for a share out of range, and for a
    confidence of another shape.
    """
    check_kind(state, TokenState, "state", "tokens")
    check_kind(confidence, Confidence, "confidence", "that of a trajectory")
    check_kind(end_of_text, int | None, "end_of_text", "the id of a token")
    for name, share in (("text", text), ("image", image)):
        if not _SHARE.fits(python_number(share)):
            raise InputError(f"The share of the {name} is {shown(share)}; expected 0 to 1.")
    shapes = confidence.text.shape, confidence.image.shape
    if shapes != (state.text.shape, state.image.shape):
        raise InputError("The trajectory is of other tokens than these: connect both of one run.")
    words = state.text != MASKED
    if text < 1 and end_of_text is not None:
        words &= state.text != end_of_text
    codes = state.image.flatten(1)
    open_text = _least(confidence.text.to(words.device), words, text)
    open_image = _least(confidence.image.flatten(1).to(codes.device), codes != MASKED, image)
    return replace(
        state,
        text=state.text.masked_fill(open_text, MASKED),
        image=codes.masked_fill(open_image, MASKED).view(state.image.shape),
    )


def _least(confidence: Tensor, candidates: Tensor, share: float) -> Tensor:
    """(B, N) bool: the ``share`` of each sample's candidates with the least confidence."""
    count = (candidates.sum(dim=1, keepdim=True) * share).ceil()
    ranking = torch.where(candidates, confidence, torch.inf).argsort(dim=1, stable=True)
    return (ranking.argsort(dim=1) < count) & candidates

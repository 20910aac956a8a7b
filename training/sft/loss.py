"""The loss of supervised finetuning: masked cross-entropy on text and image of the answer.

Paper §3 (arXiv 2511.09611): per-modality weight, text 1/t and image 1. Text mask ratio t~U(0,1),
image mask ratio cos(πu/2), drawn independently (as the released trainer of variant A does), so that
every pair of ratios that parallel, sequential and given-text denoising visits is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...mmp_core.model.transformer import MaskedDiffusionTransformer
from ...mmp_core.state import MASKED, TokenState
from ...mmp_core.variants.base import Layout

if TYPE_CHECKING:
    from .batches import MicroBatch

LOGITS_AT_ONCE = 2**24
"""At most so many, but for a vocabulary that is larger: about 0.4 GB with all that is made of them.
A sequence of the released checkpoints has ten times as many."""


@dataclass(frozen=True)
class Condition:
    """Which conditions are dropped: what guidance later uses as unconditional."""

    drop_text: bool = False
    drop_image: bool = False


@dataclass(frozen=True)
class Losses:
    """Sums over the batch, to be divided by the number of cases. Scalars."""

    text: Tensor
    image: Tensor


def draw_condition(rng: torch.Generator, *, text: float, image: float, both: float) -> Condition:
    """The instruction, the input image, or both dropped, with these probabilities."""
    u = torch.rand(1, generator=rng).item()
    return Condition(u < both + text, u < both or both + text <= u < both + text + image)


def draw_mask(shape: tuple[int, int], ratio: Tensor, rng: torch.Generator) -> Tensor:
    """(B, N) bool with exactly ⌈ratio·N⌉ (at least one) random positions set per row."""
    count = (ratio * shape[1]).ceil().clamp(1, shape[1])
    order = torch.rand(shape, generator=rng).argsort(dim=1).argsort(dim=1)
    return order < count[:, None]


def draw_masks(target: TokenState, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is masked of the text (B, T) and of the image (B, H·W), bool on the CPU."""
    n = target.batch
    text_ratio = torch.rand(n, generator=rng)
    image_ratio = torch.cos(torch.rand(n, generator=rng) * math.pi / 2)
    text_mask = draw_mask((n, target.text.shape[1]), text_ratio, rng)
    return text_mask, draw_mask((n, target.image[0].numel()), image_ratio, rng)


def masked_losses(model: MaskedDiffusionTransformer, layout: Layout, batch: MicroBatch) -> Losses:
    """The weighted cross-entropies of the masked tokens, summed over the batch.

    Text is chosen from the whole vocabulary, as is the image: (…, V) logits, float32 errors.
    """
    target, condition = batch.target, batch.condition
    device, codes = target.text.device, target.image.flatten(1)
    masked_per_row = batch.text_mask.sum(dim=1, keepdim=True).expand_as(batch.text_mask)
    text_count = masked_per_row[batch.text_mask].to(device)
    text_at, image_at = (_positions(m, device) for m in (batch.text_mask, batch.image_mask))
    text_mask, image_mask = batch.text_mask.to(device), batch.image_mask.to(device)
    state = TokenState(
        target.text.masked_fill(text_mask, MASKED),
        codes.masked_fill(image_mask, MASKED).view_as(target.image),
    )
    sequence = layout.model_input(
        batch.prompt, state, drop_text=condition.drop_text, drop_image=condition.drop_image
    )
    hidden = model(sequence.ids)
    text_error = _errors(model, hidden[:, sequence.text_positions][text_at], target.text[text_at])
    image_hidden = hidden[:, sequence.image_positions][image_at]
    image_error = _errors(model, image_hidden, codes[image_at] + layout.image_offset)
    if batch.image_weight is not None:
        image_error = image_error * batch.image_weight.flatten(1)[image_at]
    return Losses((text_error / text_count).sum(), image_error.sum() / max(1, codes.shape[1]))


def logits_at_once(vocabulary: int) -> int:
    """How many logits the loss holds at most, of whole positions with ``vocabulary`` each."""
    return max(vocabulary, LOGITS_AT_ONCE // vocabulary * vocabulary)


def _errors(model: MaskedDiffusionTransformer, hidden: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropies (n,) float32 of ``ids`` (n,) at ``hidden`` (n, d_model).

    Where that takes more logits than :data:`LOGITS_AT_ONCE`, some positions after the other: each
    part's logits are let go, and computed again for the backward.
    """
    vocabulary = model.config.embedding_size
    step = logits_at_once(vocabulary) // vocabulary
    if len(ids) <= step:
        return _error(model, hidden, ids)
    errors = [
        checkpoint(_error, model, *part, use_reentrant=False, preserve_rng_state=False)
        for part in zip(hidden.split(step), ids.split(step), strict=True)
    ]
    return torch.cat(cast(list[Tensor], errors))


def _error(model: MaskedDiffusionTransformer, hidden: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(model.logits(hidden).float(), ids, reduction="none")


def _positions(mask: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """The indices of a mask on the CPU, computed there so as not to wait for the device."""
    return tuple(index.to(device, non_blocking=True) for index in mask.nonzero(as_tuple=True))

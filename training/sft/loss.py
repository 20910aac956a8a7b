"""Supervised finetuning: masked cross-entropy on text and image of the answer.

Paper §3 (arXiv 2511.09611): per-modality weight, text 1/t and image 1. Text mask ratio t~U(0,1),
image mask ratio cos(πu/2), drawn independently (as the released trainer of variant A does), so that
every pair of ratios that parallel, sequential and given-text denoising visits is trained.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...mmp_core.model.transformer import MaskedDiffusionTransformer
from ...mmp_core.state import MASKED, Prompt, TokenState
from ...mmp_core.variants.base import Layout


@dataclass(frozen=True)
class Example:
    """One training pair, batch 1.

    ``target``: the fully decided answer. ``image_weight``: (1, H, W) float loss weight per image
    token, or ``None`` for 1 everywhere (the paper's loss).
    """

    prompt: Prompt
    target: TokenState
    image_weight: Tensor | None = None

    def to(self, device: torch.device | str) -> Example:
        weight = None if self.image_weight is None else self.image_weight.to(device)
        return Example(self.prompt.to(device), self.target.to(device), weight)

    def __getitem__(self, index: slice) -> Example:
        weight = None if self.image_weight is None else self.image_weight[index]
        return Example(self.prompt[index], self.target[index], weight)


@dataclass(frozen=True)
class Condition:
    """Which conditions are dropped: what guidance later uses as unconditional."""

    drop_text: bool = False
    drop_image: bool = False


@dataclass(frozen=True)
class Losses:
    """Sums over the batch, to be divided by the number of examples. Scalars."""

    text: Tensor
    image: Tensor


def group(examples: Iterable[Example], conditions: Iterable[Condition]) -> list[tuple]:
    """Examples with equal shapes and dropped conditions, stacked: no padding and no mask.

    Returns a list of ``(Example with batch n, Condition)``.
    """
    examples = list(examples)
    return [
        (stack([examples[place] for place in places], condition), condition)
        for places, condition in alike(examples, conditions)
    ]


def alike(
    examples: Iterable[Example], conditions: Iterable[Condition]
) -> list[tuple[list[int], Condition]]:
    """Places of the examples that can be stacked, with what is dropped of them."""
    groups = defaultdict(list)
    for place, (example, condition) in enumerate(zip(examples, conditions, strict=True)):
        image = example.prompt.image
        if image is None and condition.drop_image:
            condition = Condition(condition.drop_text)
        words = example.prompt.unconditional if condition.drop_text else example.prompt.instruction
        key = (
            condition,
            words.shape[1],
            None if image is None else image.shape[1:],
            example.target.text.shape[1],
            example.target.grid,
            example.image_weight is None,
        )
        groups[key].append(place)
    return [(places, key[0]) for key, places in groups.items()]


def stack(members: list[Example], condition: Condition) -> Example:
    """Examples that are :func:`alike` as one, of whose prompt only what is not dropped matters."""

    def cat(parts: list[Tensor | None]) -> Tensor | None:
        return None if parts[0] is None else torch.cat(parts)

    used = "unconditional" if condition.drop_text else "instruction"
    words = cat([getattr(m.prompt, used) for m in members])
    target = TokenState(
        cat([m.target.text for m in members]), cat([m.target.image for m in members])
    )
    prompt = Prompt(words, words, cat([m.prompt.image for m in members]), target)
    return Example(prompt, target, cat([m.image_weight for m in members]))


def draw_conditions(
    n: int, rng: torch.Generator, *, text: float, image: float, both: float
) -> list[Condition]:
    """``n`` draws: the instruction, the input image, or both dropped, with these probabilities."""
    draws = torch.rand(n, generator=rng).tolist()
    return [
        Condition(u < both + text, u < both or both + text <= u < both + text + image)
        for u in draws
    ]


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
    text_mask = draw_mask(tuple(target.text.shape), text_ratio, rng)
    return text_mask, draw_mask((n, target.image[0].numel()), image_ratio, rng)


def sft_losses(
    model: MaskedDiffusionTransformer,
    layout: Layout,
    example: Example,
    condition: Condition,
    rng: torch.Generator,
) -> Losses:
    """Mask a stacked example and return the weighted cross-entropies, summed over its batch."""
    masks = draw_masks(example.target, rng)
    return masked_losses(model, layout, example, condition, *masks)


def masked_losses(
    model: MaskedDiffusionTransformer,
    layout: Layout,
    example: Example,
    condition: Condition,
    text_mask: Tensor,
    image_mask: Tensor,
) -> Losses:
    """As :func:`sft_losses`, of masks that :func:`draw_masks` gave."""
    target = example.target
    device = target.text.device
    per_row = text_mask.sum(dim=1, keepdim=True).expand_as(text_mask)[text_mask].to(device)
    text_at, image_at = (_positions(mask, device) for mask in (text_mask, image_mask))
    text_mask, image_mask = text_mask.to(device), image_mask.to(device)
    codes = target.image.flatten(1)
    state = TokenState(
        target.text.masked_fill(text_mask, MASKED),
        codes.masked_fill(image_mask, MASKED).view_as(target.image),
    )
    sequence = layout.model_input(
        example.prompt, state, drop_text=condition.drop_text, drop_image=condition.drop_image
    )
    hidden = model(sequence.ids)
    text_logits = model.logits(hidden[:, sequence.text_positions][text_at])
    image_logits = model.logits(hidden[:, sequence.image_positions][image_at])
    text_error = F.cross_entropy(text_logits.float(), target.text[text_at], reduction="none")
    image_error = F.cross_entropy(
        image_logits.float(), codes[image_at] + layout.image_offset, reduction="none"
    )
    if example.image_weight is not None:
        image_error = image_error * example.image_weight.flatten(1)[image_at]
    return Losses((text_error / per_row).sum(), image_error.sum() / codes.shape[1])


def _positions(mask: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Where a mask on the CPU is set: found there, so that the device need not be waited for."""
    return tuple(index.to(device, non_blocking=True) for index in mask.nonzero(as_tuple=True))

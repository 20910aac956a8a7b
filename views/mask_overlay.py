"""A picture with the mask laid over it, and with the image tokens that the mask selects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..mmp_core import MASKED, Prompt
from ..mmp_core.image.files import load_image
from ..mmp_core.image.masks import covered, mask_values
from ..mmp_core.image.placement import Box

SIDE = 512
"""Least length of the longer side, so that outlines of small pictures are seen."""
_MASK = np.array([255.0, 60.0, 60.0])
_OUTLINE = np.array([255.0, 255.0, 255.0])
_MASK_OPACITY, _DARKENED = 0.55, 0.45


def prompt_overlays(
    prompt: Prompt, pictures: Iterable[Image.Image], masks: Sequence[Image.Image | None]
) -> list[Image.Image]:
    """Each sample of an inpainting prompt before it is denoised: its picture as the model sees it,
    with the mask, and with the image tokens that are masked."""
    overlays = []
    places, tokens = prompt.placement or (), prompt.initial.image
    for picture, mask, place, codes in zip(pictures, masks, places, tokens, strict=True):
        part = load_image(picture).resize(place.size, Image.Resampling.BICUBIC, place.box)
        values, box = torch.zeros(1, 1), None
        if mask is not None:
            values, box = mask_values(mask)[0], place.in_size(mask.size).box
        overlays.append(mask_overlay(part, values, codes == MASKED, box))
    return overlays


def mask_overlay(
    picture: Image.Image, mask: Tensor, cells: Tensor, box: Box | None = None
) -> Image.Image:
    """``picture``, RGB, darkened but for the selected image tokens, which are outlined; painted
    parts are red.

    ``mask``: (h, w) 0 … 1, of any size. ``cells``: (H, W) bool, the selected tokens. ``box``: where
    the picture lies in the mask, by default all over it.
    """
    times = max(1, round(SIDE / max(picture.size)))
    size = picture.width * times, picture.height * times
    levels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), np.float32)
    selected = _enlarged(cells, size)
    levels = levels * np.where(selected, 1.0, _DARKENED)[..., None]
    painted = covered(mask[None].float(), (size[1], size[0]), box)[0].numpy() * _MASK_OPACITY
    levels += painted[..., None] * (_MASK - levels)
    levels[_edges(selected, max(1, round(max(size) / 400)))] = _OUTLINE
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))


def _enlarged(cells: Tensor, size: tuple[int, int]) -> np.ndarray:
    rows = torch.arange(size[1]) * cells.shape[0] // size[1]
    columns = torch.arange(size[0]) * cells.shape[1] // size[0]
    return cells.cpu()[rows][:, columns].numpy()


def _edges(selected: np.ndarray, width: int) -> np.ndarray:
    """The border of ``selected``, inside it."""
    inner = np.pad(selected, width)
    for axis in (0, 1):
        shifted = (np.roll(inner, step, axis) for step in range(-width, width + 1))
        inner = np.logical_and.reduce(list(shifted))
    return selected & ~inner[width:-width, width:-width]

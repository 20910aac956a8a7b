"""Pictures as ComfyUI passes them between nodes, and as PIL has them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from comfy_api.v0_0_2 import ui
from PIL import Image

from .host import interruptible, stop_if_interrupted

_log = logging.getLogger(__name__)
_STRIP = 2**24
"""Numbers."""


def to_picture(pixels: torch.Tensor) -> Image.Image:
    """A picture of (H, W, 1, 3 or 4) floats in 0 … 1. The run may be interrupted."""
    parts = [
        (part.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        for part in interruptible(strips(pixels))
    ]
    levels = torch.cat(parts).numpy()
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def strips(rows: torch.Tensor) -> Sequence[torch.Tensor]:
    """``rows`` in parts of equally many, so few that each is computed in well under a second."""
    return rows.split(max(1, _STRIP * len(rows) // rows.numel()))


def to_pictures(batch: torch.Tensor | None) -> list[Image.Image]:
    """The pictures of a batch; none where there is no batch. The run may be interrupted."""
    return [] if batch is None else [to_picture(pixels) for pixels in interruptible(batch)]


def to_pixels(pictures: Iterable[Image.Image]) -> torch.Tensor:
    """(N, H, W, 3) float32 in 0 … 1 of RGB pictures of one size. The run may be interrupted."""
    levels = [torch.from_numpy(np.array(picture)) for picture in interruptible(pictures)]
    pixels = torch.empty(len(levels), *levels[0].shape)
    for picture, whole in zip(levels, pixels, strict=True):
        for part, rows in zip(strips(whole), strips(picture), strict=True):
            stop_if_interrupted()
            torch.div(rows, 255, out=part)
    return pixels


def to_masks(mask: torch.Tensor | None) -> list[Image.Image]:
    """The same of masks."""
    return to_pictures(None if mask is None else mask.reshape(-1, *mask.shape[-2:])[..., None])


def shown(pixels: torch.Tensor, text: str, node: Any) -> dict[str, Any]:
    """The ui data of a node that shows a picture and a text."""
    return {**ui.PreviewImage(pixels, cls=node).as_dict(), **ui.PreviewText(text).as_dict()}


def said(
    notes: Sequence[str], node: Any, pictures: Sequence[Image.Image] = ()
) -> dict[str, Any] | None:
    """The ui data of a node that says what it did, and writes it to the log; ``pictures`` of one
    size are shown with it."""
    for note in notes:
        _log.info(note)
    preview = ui.PreviewImage(to_pixels(pictures), cls=node).as_dict() if pictures else {}
    text = ui.PreviewText("\n".join(notes)).as_dict() if notes else {}
    return {**preview, **text} or None

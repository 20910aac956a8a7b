"""Pictures as ComfyUI passes them between nodes, and as PIL has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from comfy_api.latest import ui
from PIL import Image

from ..mmp_core import InputError


def to_picture(pixels: torch.Tensor) -> Image.Image:
    """A picture of (H, W, 1, 3 or 4) floats in 0 … 1."""
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def to_pixels(pictures: Iterable[Image.Image]) -> torch.Tensor:
    """(N, H, W, 3) float32 in 0 … 1 of RGB pictures of one size."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).float() / 255


def masks_for(mask: torch.Tensor, count: int) -> torch.Tensor:
    """(1 or ``count``, H, W) on the CPU. Raises ``InputError`` for another number of masks."""
    masks = mask.reshape(-1, *mask.shape[-2:]).cpu()
    if masks.shape[0] not in (1, count):
        raise InputError(
            f"There are {masks.shape[0]} masks for {count} picture(s): give one mask, or one for "
            "each picture."
        )
    return masks


def shown(pixels: torch.Tensor, text: str, node: Any) -> dict[str, Any]:
    """The ui data of a node that shows a picture and a text."""
    return {**ui.PreviewImage(pixels, cls=node).as_dict(), **ui.PreviewText(text).as_dict()}

"""What changed between two pictures of a model's size, and how: the maths behind put back.

Pictures are (C, H, W) float tensors in 0 … 1, areas (H, W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_CHANGE = 0.03
"""Smoothed changes below this are none, of a range of 1."""
_SIGMA = 3.0
"""Of the widest Gaussian that is computed in full."""
_BRIGHTNESS = (0.299, 0.587, 0.114)
_FLAT = 1e-3
"""Variance below which a picture has no structure to speak of."""


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """``maps`` (..., H, W), each convolved with a Gaussian of ``sigma`` pixels; a wide one by way
    of smaller maps."""
    shape = maps.shape
    flat = maps.reshape(-1, 1, *shape[-2:])
    shrink = min(int(sigma // _SIGMA), *shape[-2:])
    if shrink > 1:
        size = [-(-side // shrink) for side in shape[-2:]]
        small = smoothed(F.interpolate(flat, size, mode="area"), sigma / shrink)
        return F.interpolate(small, shape[-2:], mode="bicubic").reshape(shape)
    radius = max(1, round(3 * sigma))
    kernel = torch.exp(-(torch.arange(-radius, radius + 1).float() ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    for form, pad in (((1, -1), (radius, radius, 0, 0)), ((-1, 1), (0, 0, radius, radius))):
        flat = F.conv2d(F.pad(flat, pad, mode="replicate"), kernel.view(1, 1, *form))
    return flat.reshape(shape)


def dilated(area: Tensor, pixels: int) -> Tensor:
    """``area`` grown by ``pixels`` on every side, in about the shape of an octagon."""
    area = area[None, None].float()
    for step in range(pixels):
        if step % 2:
            area = F.max_pool2d(area, 3, 1, 1)
        else:
            across = F.max_pool2d(area, (1, 3), 1, (0, 1))
            area = torch.maximum(across, F.max_pool2d(area, (3, 1), 1, (1, 0)))
    return area[0, 0]


def changed_area(before: Tensor, after: Tensor, threshold: float, unit: int) -> Tensor:
    """(H, W) 0 or 1: where ``after`` differs from ``before``.

    The signed difference is smoothed, so that noise averages out, and compared with ``threshold``
    times the strongest one within one and a half image tokens of ``unit`` pixels: a token that an
    edit touches with a corner changes as a whole, but less. Gaps narrower than a token are closed,
    single specks dropped.
    """
    strength = smoothed(after - before, unit / 5).abs().amax(0)
    reach = 3 * unit // 2
    peak = F.max_pool2d(strength[None, None], 2 * reach + 1, 1, reach)[0, 0]
    peak = smoothed(peak, unit / 2)
    area = ((strength > threshold * peak) & (strength > LEAST_CHANGE)).float()
    speck = max(1, unit // 8)
    area = dilated(1 - dilated(1 - area, speck), speck)
    gap = unit
    return 1 - dilated(1 - dilated(F.pad(area, (gap,) * 4), gap), gap)[gap:-gap, gap:-gap]


def feathered(area: Tensor, pixels: int) -> Tensor:
    """``area`` with a soft edge of ``pixels`` outside it, falling to 0."""
    if not pixels:
        return area
    radius = (pixels + 1) // 2
    wide = F.pad(dilated(area, pixels // 2)[None, None], (radius,) * 4, mode="replicate")
    ramp = F.avg_pool2d(wide, 2 * radius + 1, 1)
    return torch.maximum(ramp[0, 0], area)


def affine_change(
    seen: Tensor, before: Tensor, after: Tensor, area: Tensor, unit: int
) -> tuple[Tensor, Tensor]:
    """Gain and shift, (C, H, W) each, by which ``seen`` becomes what ``after`` is to ``before``.

    A regression of the difference on ``seen`` around each pixel of ``area``, so that edges and
    texture of the original stay where they are (He et al., Guided Image Filtering, 2010).
    """
    weight = area + 1e-4
    total = smoothed(weight, unit / 5)

    def mean(maps: Tensor) -> Tensor:
        return smoothed(maps * weight, unit / 5) / total

    change = after - before
    level, shift = mean(seen), mean(change)
    variance = mean(seen * seen) - level * level
    gain = (mean(seen * change) - level * shift) / (variance + _FLAT)
    gain = gain.clamp(-1.0, 1.0)
    offset = shift - gain * level
    gain, offset = mean(gain), mean(offset)
    rest = change - gain * seen - offset
    noise = 2 * smoothed((seen - before) ** 2, unit / 2)
    offset = offset + smoothed(rest * rest**2 / (rest**2 + noise + 1e-8), 1.0)
    return 1 + gain, offset


def new_structure(seen: Tensor, before: Tensor, after: Tensor, area: Tensor, unit: int) -> Tensor:
    """(H, W) 0 … 1: how much of the structure of ``seen`` is gone in ``after`` around each pixel,
    measured by how much of it the image tokenizer leaves in ``before``."""
    weights = seen.new_tensor(_BRIGHTNESS)[:, None, None]
    details = [
        grey - smoothed(grey, unit / 2)
        for grey in ((x * weights).sum(0) for x in (seen, before, after))
    ]
    weight = area + 1e-4

    def mean(maps: Tensor) -> Tensor:
        return smoothed(maps * weight, 2.0 * unit)

    def likeness(one: Tensor, other: Tensor) -> Tensor:
        return mean(one * other) / (mean(one * one) * mean(other * other) + 1e-10).sqrt()

    original, kept, new = details
    most = likeness(original, kept).clamp(0.2, 1)
    needed = 0.35 + 0.5 * most  # less where the tokenizer itself leaves little of the structure
    return (0.5 + 5 * (needed - likeness(original, new) / most)).clamp(0, 1)


def seam_correction(seen: Tensor, after: Tensor, area: Tensor, unit: int) -> Tensor:
    """(C, H, W): what to add to ``after`` so that it meets ``seen`` around ``area``: the mean
    difference of the two outside it, within a few tokens of ``unit`` pixels, as far as it is the
    same all around."""
    outside, spread = 1 - area, 2.0 * unit
    near = smoothed(outside, spread)
    weight = near + 0.02

    def mean(maps: Tensor) -> Tensor:
        return smoothed(maps * outside, spread) / weight

    offset = mean(seen - after)
    variance = (mean((seen - after) ** 2) - offset**2).clamp_min(0)
    return offset * offset**2 / (offset**2 + variance / 16 + 1e-8)

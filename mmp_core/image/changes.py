"""What changed between two pictures of a model's size, and how: the maths behind put back.

Pictures are (C, H, W) float tensors in 0 … 1, areas (H, W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import Tell
from .masks import largest_near

LEAST_CHANGE = 0.03
"""Smoothed changes below this are none, of a range of 1."""
_SIGMA = 3.0
"""Of the widest Gaussian that is computed in full."""
_BRIGHTNESS = (0.299, 0.587, 0.114)
_FLAT = 1e-3
"""Variance below which a picture has no structure to speak of."""
_MOST_GAIN = 2.0
"""By which a colour of the original may be multiplied, so that its noise does not stand out."""


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


def dilated(area: Tensor, pixels: int, tell: Tell = lambda: None) -> Tensor:
    """``area`` grown by ``pixels`` on every side, in about the shape of an octagon."""
    area = area[None, None].float()
    for step in range(pixels):
        tell()
        if step % 2:
            area = F.max_pool2d(area, 3, 1, 1)
        else:
            across = F.max_pool2d(area, (1, 3), 1, (0, 1))
            area = torch.maximum(across, F.max_pool2d(area, (3, 1), 1, (1, 0)))
    return area[0, 0]


def changed_area(
    before: Tensor, after: Tensor, threshold: float, unit: int, tell: Tell = lambda: None
) -> Tensor:
    """(H, W) 0 or 1: where ``after`` differs from ``before``.

    The signed difference is smoothed, so that noise averages out, and compared with ``threshold``
    times the strongest one within one and a half image tokens of ``unit`` pixels: a token that an
    edit touches with a corner changes as a whole, but less. Gaps narrower than a token are closed,
    single specks dropped.
    """
    strength = smoothed(after - before, unit / 5).abs().amax(0)
    reach = 3 * unit // 2
    peak = smoothed(largest_near(strength[None], reach)[0], unit / 2)
    area = ((strength > threshold * peak) & (strength > LEAST_CHANGE)).float()
    speck = max(1, unit // 8)
    area = dilated(1 - dilated(1 - area, speck, tell), speck, tell)
    gap = unit
    closed = dilated(1 - dilated(F.pad(area, (gap,) * 4), gap, tell), gap, tell)
    return 1 - closed[gap:-gap, gap:-gap]


def feathered(area: Tensor, pixels: int, tell: Tell = lambda: None) -> Tensor:
    """``area`` with a soft edge of ``pixels`` outside it, falling to 0."""
    if not pixels:
        return area
    radius = (pixels + 1) // 2
    wide = F.pad(dilated(area, pixels // 2, tell)[None, None], (radius,) * 4, mode="replicate")
    ramp = F.avg_pool2d(F.avg_pool2d(wide, (1, 2 * radius + 1), 1), (2 * radius + 1, 1), 1)
    return torch.maximum(ramp[0, 0], area)


def affine_change(
    seen: Tensor,
    before: Tensor,
    after: Tensor,
    area: Tensor,
    unit: int,
    tell: Tell = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Gain (C, C, H, W), from the second colour to the first, and shift (C, H, W), by which
    ``seen`` becomes what ``after`` is to ``before``.

    A regression of the change on all colours of ``before`` within a few image tokens of ``unit``
    pixels, weighted by ``area``, so that edges and texture of the original stay where they are (He
    et al., Guided Image Filtering, 2010). What it leaves of ``after`` goes to the shift as far as
    there is more of it than the image tokenizer's own error (a Wiener filter).
    """
    weight, channels = area + 1e-4, len(seen)
    shrink, spread = max(1, unit // 4), 2.0 * unit
    size = [-(-side // shrink) for side in area.shape]

    def near(maps: Tensor) -> Tensor:
        tell()
        return smoothed(F.interpolate(maps[None], size, mode="area")[0], spread / shrink)

    total = near(weight[None])
    level, shift = near(before * weight) / total, near((after - before) * weight) / total

    def covariance(one: Tensor, mean: Tensor) -> Tensor:
        """(h, w, C, C) of ``before`` with another picture."""
        products = (before[:, None] * one[None]).flatten(0, 1) * weight
        means = (level[:, None] * mean[None]).flatten(0, 1)
        return (near(products) / total - means).permute(1, 2, 0).unflatten(2, (channels, channels))

    own = covariance(before, level) + _FLAT * torch.eye(channels)
    slopes = torch.linalg.solve(own, covariance(after - before, shift))
    gain = slopes.permute(3, 2, 0, 1).clamp(-_MOST_GAIN, _MOST_GAIN)
    shift = shift - (gain * level).sum(1)
    weight_here = F.interpolate(weight[None, None], size, mode="area")[0]
    maps = smoothed(torch.cat([gain.flatten(0, 1), shift]) * weight_here, spread / shrink) / total
    maps = F.interpolate(maps[None], area.shape, mode="bilinear")[0]
    gain, shift = maps[:-channels].view(channels, channels, *area.shape), maps[-channels:]

    def mean(maps: Tensor, sigma: float) -> Tensor:
        tell()
        return smoothed(maps * weight, sigma) / smoothed(weight, sigma)

    rest = mean(after - seen - (gain * seen).sum(1) - shift, 1.0)
    tell()
    noise = smoothed(smoothed(seen - before, 1.0) ** 2, unit / 2)
    power = mean(rest**2, unit / 2)
    shift = shift + rest * ((power - noise) / (power + 1e-8)).clamp(0, 1)
    return gain + torch.eye(channels)[..., None, None], shift


def new_structure(
    seen: Tensor,
    before: Tensor,
    after: Tensor,
    area: Tensor,
    unit: int,
    tell: Tell = lambda: None,
) -> Tensor:
    """(H, W) 0 … 1: how much of the structure of ``seen`` is gone in ``after`` around each pixel,
    measured by how much of it the image tokenizer leaves in ``before``."""
    weights = seen.new_tensor(_BRIGHTNESS)[:, None, None]
    details = [
        grey - smoothed(grey, unit / 2)
        for grey in ((x * weights).sum(0) for x in (seen, before, after))
    ]
    weight = area + 1e-4

    def mean(maps: Tensor) -> Tensor:
        tell()
        return smoothed(maps * weight, 2.0 * unit)

    def likeness(one: Tensor, other: Tensor) -> Tensor:
        return mean(one * other) / (mean(one * one) * mean(other * other) + 1e-10).sqrt()

    original, kept, new = details
    most = likeness(original, kept).clamp(0.2, 1)
    needed = most - 0.15  # less where the tokenizer itself leaves little of the structure
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

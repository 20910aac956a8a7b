"""Pixels in and out: RGB pictures to what an image tokenizer reads, and back to a picture.

Families crop to the best-matching size (:func:`fit_image`) or squash (:func:`squash_image`), both
as in the released MMaDA-Parallel code, which crops at random where ours crops the centre.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import InputError, shown
from .blocks import check_floats
from .files import Picture as Picture
from .files import load_image as load_image
from .placement import Placement, Size

Offset = Literal["center"] | random.Random
"""Where to crop: see :func:`fit_image`."""

UNIT_RANGE = (0.0, 1.0)
SIGNED_RANGE = (-1.0, 1.0)
LARGEST_RESIZE = 2**26
_CROP_PATCHES = 16


def crop_sizes(area: int, patch: int, max_ratio: float = 4.0) -> list[Size]:
    """List every (width, height), widest first, of whole patches of ``patch`` x ``patch`` pixels
    that fills a budget of ``area`` patches, with sides at most ``max_ratio`` apart. Raises
    ``InputError`` for an area or patch below 1 or a ratio below 1."""
    if area < 1 or patch < 1 or max_ratio < 1.0:
        raise InputError(
            f"area {area}, patch {patch}, max_ratio {max_ratio}: expected at least 1 for each."
        )
    sizes = []
    columns, rows = area, 1
    while columns > 0:
        if max(columns, rows) <= max_ratio * min(columns, rows):
            sizes.append((columns * patch, rows * patch))
        if columns * (rows + 1) <= area:
            rows += 1
        else:
            columns -= 1
    return sizes


def sizes_near(side: int, unit: int) -> list[Size]:
    """:func:`crop_sizes` of about the area of a square of ``side`` pixels, in patches of which at
    most 16 make its side (of 32x32 pixels for 512). ``unit``: pixels per image code."""
    patch = unit * -(-side // (_CROP_PATCHES * unit))
    return crop_sizes((side // patch) ** 2, patch)


def fit_image(
    image: Image.Image, sizes: Sequence[Size], *, offset: Offset = "center"
) -> Image.Image:
    """Scale ``image`` to cover, and crop it to, the one of ``sizes`` nearest to its aspect ratio.

    ``image``: RGB. ``sizes``: (width, height) each. ``offset``: where to crop: "center", or a
    generator, which draws the place exactly as the released code draws from Python's global
    generator in the same state.

    Raises ``InputError`` where the image is not RGB, no sizes are given, or the offset is unknown.
    """
    _check_rgb(image)
    if not sizes:
        raise InputError(
            "sizes is empty; expected at least one (width, height), as crop_sizes gives them."
        )
    check_offset(offset)
    for method, numbers in _cover_steps(image.size, nearest_size(image.size, sizes), offset):
        image = image.crop(numbers) if method is None else image.resize(numbers, method)
    return image


def check_offset(offset: Offset) -> None:
    """Raise ``InputError`` for one that says nothing."""
    centred = isinstance(offset, str) and offset == "center"
    if not centred and not isinstance(offset, random.Random):
        raise InputError(f"offset is {shown(offset)}; expected 'center' or a random.Random.")


def covering_placement(original: Size, size: Size, *, offset: Offset = "center") -> Placement:
    """Where the picture that :func:`fit_image` makes for ``size`` alone lies in one of ``original``
    pixels. ``offset``: a generator must be in the state that :func:`fit_image` meets it in."""
    placement = Placement.whole(original)
    for method, numbers in _cover_steps(original, size, offset):
        placement = placement.cropped(*numbers) if method is None else placement.resized(numbers)
    return placement


def nearest_size(image: Size, sizes: Sequence[Size]) -> Size:
    """The one of ``sizes`` (at least one) nearest to the aspect ratio of ``image``."""

    def coverage(size: Size) -> float:
        scales = size[0] / image[0], size[1] / image[1]
        return min(scales) / max(scales)

    return max((coverage(size), (size[0], size[1])) for size in sizes)[1]


def _cover_steps(size: Size, crop: Size, offset: Offset) -> Iterator[tuple[Any, Any]]:
    """How a picture of ``size`` is brought to ``crop``: (None, edges) crops it, (filter, size)
    resizes the whole of it. It is resized to the smallest size that covers ``crop``; a strip too
    long to be resized whole is cut to its middle part first."""
    while size[0] >= 2 * crop[0] and size[1] >= 2 * crop[1]:
        size = size[0] // 2, size[1] // 2
        yield Image.Resampling.BOX, size
    scale = max(crop[0] / size[0], crop[1] / size[1])
    limit = max(LARGEST_RESIZE, crop[0] * crop[1])
    if size[0] * size[1] * scale**2 > limit:
        most = math.ceil(limit / (crop[1] * scale)), math.ceil(limit / (crop[0] * scale))
        middle = min(size[0], most[0]), min(size[1], most[1])
        yield None, _edges(size, middle, "center")
        size = middle
    size = round(size[0] * scale), round(size[1] * scale)
    yield Image.Resampling.BICUBIC, size
    yield None, _edges(size, crop, offset)


def _edges(size: Size, crop: Size, offset: Offset) -> tuple[int, int, int, int]:
    if offset == "center":
        crop = min(crop[0], size[0]), min(crop[1], size[1])
        left, top = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    else:
        offset.choice([crop])  # as the released code draws, which chooses among sizes
        left, top = offset.randint(0, size[0] - crop[0]), offset.randint(0, size[1] - crop[1])
    return left, top, left + crop[0], top + crop[1]


def squash_image(image: Image.Image, size: Size) -> Image.Image:
    """Resize ``image`` (RGB), bicubic, to ``size``, (width, height). Nothing is cropped, so
    the aspect ratio changes. Raises ``InputError`` where the image is not RGB or the size is not
    positive."""
    _check_rgb(image)
    if min(size) < 1:
        raise InputError(f"size is {size[0]}x{size[1]}; expected at least 1x1.")
    return image.resize(size, Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image, pixel_range: tuple[float, float]) -> Tensor:
    """Pixels (1, 3, H, W) float32 of an RGB image, black and white at the ends of ``pixel_range``.
    Raises ``InputError`` where the image is not RGB or the range is not [0, 1] or [-1, 1]."""
    _check_rgb(image)
    signed = _is_signed(pixel_range)
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).contiguous()
    unit = levels.to(torch.float32) / 255
    return unit * 2 - 1 if signed else unit


def to_pil(pixels: Tensor, pixel_range: tuple[float, float]) -> list[Image.Image]:
    """RGB images of pixels (B, 3, H, W) on any device; values beyond ``pixel_range`` are clipped.

    As in the released code, values in [0, 1] are rounded to the nearest of 256 levels, those in
    [-1, 1] down.

    Raises ``InputError`` for another shape or a range that is not [0, 1] or [-1, 1].
    """
    signed = _is_signed(pixel_range)
    check_floats("pixels", pixels, 3)
    unit = pixels.detach().float()
    if signed:
        unit = (unit + 1) / 2
    levels = unit.nan_to_num(0.0).clamp(0, 1) * 255
    levels = (levels if signed else levels.round()).to(torch.uint8)
    if not levels.shape[2] or not levels.shape[3]:  # an answer of text alone
        return [Image.new("RGB", (0, 0)) for _ in levels]
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def painting_mask(
    height: int,
    width: int,
    grid_h: int,
    grid_w: int,
    mode: Literal["inpainting", "outpainting"],
    h_ratio: float,
    w_ratio: float,
) -> Tensor:
    """Which codes are to be painted: bool (grid_h, grid_w) for a picture of ``height`` x ``width``
    pixels.

    A centred rectangle takes the given shares of height and width; a code is True where more than
    half of its area lies inside it ("inpainting") or outside it ("outpainting").

    Raises ``InputError`` for an unknown mode, a ratio outside [0, 1] or a side below 1.
    """
    if mode not in ("inpainting", "outpainting"):
        raise InputError(f"mode is {mode!r}; expected 'inpainting' or 'outpainting'.")
    if not (0 <= h_ratio <= 1 and 0 <= w_ratio <= 1):
        raise InputError(f"h_ratio {h_ratio}, w_ratio {w_ratio}: expected both within 0 … 1.")
    if min(height, width, grid_h, grid_w) < 1:
        raise InputError(
            f"a picture of {width}x{height} on a grid of {grid_w}x{grid_h}: expected "
            "every side to be at least 1."
        )
    rows, columns = round(height * h_ratio), round(width * w_ratio)
    top, left = (height - rows) // 2, (width - columns) // 2
    inside = torch.zeros(1, 1, height, width)
    inside[:, :, top : top + rows, left : left + columns] = 1.0
    painted = inside if mode == "inpainting" else 1.0 - inside
    return F.interpolate(painted, size=(grid_h, grid_w), mode="area")[0, 0] > 0.5


def _check_rgb(image: Image.Image) -> None:
    if image.mode != "RGB" or not image.width or not image.height:
        raise InputError(
            f"image is {image.width}x{image.height}, mode {image.mode}; expected RGB "
            "with at least one pixel. Read it with load_image."
        )


def _is_signed(pixel_range: tuple[float, float]) -> bool:
    if tuple(pixel_range) not in (UNIT_RANGE, SIGNED_RANGE):
        raise InputError(
            f"pixel_range is {pixel_range}; expected {UNIT_RANGE} or {SIGNED_RANGE}, "
            "the tokenizer's own pixel_range."
        )
    return tuple(pixel_range) == SIGNED_RANGE

"""Pixels in and out: any picture to what an image tokenizer reads, and back to a picture.

Families crop to the best-matching size (:func:`fit_image`) or squash (:func:`squash_image`), both
as in the released MMaDA-Parallel code, which crops at random where ours crops the centre.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from ..errors import InputError
from .blocks import check_floats
from .placement import Placement, Size

Picture = Image.Image | str | os.PathLike
Offset = Literal["center"] | random.Random
"""Where to crop: see :func:`fit_image`."""

UNIT_RANGE = (0.0, 1.0)
SIGNED_RANGE = (-1.0, 1.0)
WHITE = (255, 255, 255, 255)
LARGEST_RESIZE = 2**26
_CROP_PATCHES = 16


def load_image(source: Picture) -> Image.Image:
    """The picture as upright 8-bit RGB.

    Transparency is laid on white, EXIF rotation applied, 16-bit, 32-bit and float greyscale scaled
    to 8 bit. Of an animated file the first frame is taken, of a PIL image the current one; the PIL
    image is not changed.

    Raises ``InputError`` naming the file: missing, damaged or not a picture.
    """
    if isinstance(source, Image.Image):
        return _convert(source, "the image given")
    path = Path(source)
    if not path.is_file():
        raise InputError(f"image {path}: no such file; give the path of a picture.")
    try:
        with Image.open(path) as opened:
            opened.load()
            return _convert(opened, f"image {path}")
    except InputError:
        raise
    except Exception as error:  # PIL's decoders raise anything on damaged data
        raise InputError(
            f"image {path}: cannot be read as a picture ({error}); it is damaged or "
            "of an unknown format. Open it in an image editor and save it as PNG."
        ) from error


def _convert(image: Image.Image, name: str) -> Image.Image:
    if not image.width or not image.height:
        raise InputError(f"{name} is {image.width}x{image.height}; expected at least one pixel.")
    try:
        upright = ImageOps.exif_transpose(image) or image
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
            return _eight_bit(upright)
        if upright.mode == "LAB":
            profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(upright, *profiles, outputMode="RGB")
            return converted or upright.convert("RGB")
        if upright.mode == "La":
            upright = upright.convert("LA")
        if upright.has_transparency_data:
            colours = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", colours.size, WHITE), colours)
        return upright.convert("RGB")
    except Exception as error:
        raise InputError(
            f"{name} (mode {image.mode}) cannot be converted to RGB ({error}). "
            "Open it in an image editor and save it as PNG."
        ) from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deep greyscale as 8-bit RGB. White is 65535 for I;16 and I, for F it is 1 where no value is
    larger and else 255; values beyond 0 … white are stretched from their own minimum and maximum.
    A transparent grey level becomes white."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = 0.0, 65535.0
    if image.mode == "F":
        high = 1.0 if values.max() <= 1.0 else 255.0
    if values.min() < low or values.max() > high:
        low, high = values.min(), values.max()
    grey = np.round((values - low) / max(high - low, np.finfo(float).tiny) * 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def crop_sizes(area: int, patch: int, max_ratio: float = 4.0) -> list[Size]:
    """List every (width, height), widest first, of whole patches of ``patch`` x ``patch`` pixels
    that fills a budget of ``area`` patches, with sides at most ``max_ratio`` apart. Raises
    ``InputError`` for an area or patch below 1 or a ratio below 1."""
    if area < 1 or patch < 1 or max_ratio < 1.0:
        raise InputError(
            f"area {area}, patch {patch}, max_ratio {max_ratio}: expected all at least 1."
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
    if offset != "center" and not isinstance(offset, random.Random):
        raise InputError(f"offset is {offset!r}; expected 'center' or a random.Random.")
    for method, numbers in _cover_steps(image.size, nearest_size(image.size, sizes), offset):
        image = image.crop(numbers) if method is None else image.resize(numbers, method)
    return image


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

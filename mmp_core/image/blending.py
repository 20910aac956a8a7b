"""An edited picture of a model's size, laid on a large original without touching the rest of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .placement import Box, Placement, Size

_STRIP_PIXELS = 2**18
_BRIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Fine:
    """A result larger than the model's picture. ``picture``: RGB, some whole number of times as
    large. ``coarse`` (3, H, W): the same at the model's size. ``share`` (H, W), 0 … 1: how much of
    what ``coarse`` lacks is added."""

    picture: Image.Image
    coarse: Tensor
    share: Tensor


@dataclass(frozen=True)
class Layer:
    """What comes over an original, in the size of the model's picture.

    Where ``mask`` (H, W) is above 0, colours c of the original, 0 … 1, become ``gain`` · c +
    ``shift``, (3, 3, H, W) and (3, H, W); without a gain the shift replaces them. ``reach`` (H, W)
    is what the mask is multiplied by, and falls to 0 at edges that lie inside the original. All
    float32 on the CPU."""

    mask: Tensor
    reach: Tensor
    shift: Tensor
    gain: Tensor | None = None
    fine: Fine | None = None


def original_part(pixels: np.ndarray, placement: Placement) -> np.ndarray:
    """(h, w, 3) float32 in 0 … 1: the original (H, W, C) as a picture of the model's size; beyond
    its edges they are repeated."""
    width, height = placement.original
    left, top, right, bottom = placement.box
    inside = (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
    edges = (*placement.to_model(*inside[:2]), *placement.to_model(*inside[2:]))
    x0, y0, x1, y1 = (round(edge) for edge in edges)
    size = max(1, x1 - x0), max(1, y1 - y0)
    scaled = _resized(_eight_bit(pixels), size, inside)
    around = (y0, placement.size[1] - y0 - size[1]), (x0, placement.size[0] - x0 - size[0])
    return np.pad(scaled, (*(tuple(max(0, n) for n in side) for side in around), (0, 0)), "edge")


def _resized(levels: np.ndarray, size: Size, box: Box) -> np.ndarray:
    shrunk = Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR, box, reducing_gap=3.0)
    return np.asarray(shrunk, np.float32) / 255


def _eight_bit(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8."""
    colours = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, 2)
    if colours.dtype == np.uint8:
        return np.ascontiguousarray(colours)
    unit = colours.astype(np.float32) / white_of(pixels)
    return (unit.clip(0, 1) * 255).round().astype(np.uint8)


def white_of(pixels: np.ndarray) -> float:
    """The value of white: 1 for floats."""
    return float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else 1.0


def blended(
    pixels: np.ndarray,
    placement: Placement,
    layer: Layer,
    painted: np.ndarray | None = None,
    callback: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The original with ``layer`` over it, and the mask that was used.

    ``pixels``: (H, W, C) uint8, uint16 or float, C 1 … 4; the fourth channel, or the second of two,
    is transparency and stays. ``placement``: where the layer lies. ``painted``: (H, W) uint8 of the
    original's size; where it is above the layer's mask it counts instead. Where the canvas was
    extended beyond the original, the result is larger by that, all of it from the layer.
    ``callback`` counts the strips that are done; where it raises, or Ctrl-C comes, the others are
    not begun.

    Returns (H', W', C) of the same dtype and (H', W') uint8; where that is 0, pixels are the
    original's, bit for bit.
    """
    left, top, right, bottom = margins = _margins(placement)
    sides = ((top, bottom), (left, right))
    canvas = np.pad(pixels, (*sides, (0, 0)), "edge") if any(margins) else pixels.copy()
    size = canvas.shape[1], canvas.shape[0]
    enlarged = _Enlarged(layer, placement.within(size, left, top), any(margins))
    new = np.pad(np.zeros(pixels.shape[:2], np.uint8), sides, constant_values=255)
    given = np.zeros_like(new) if painted is None else np.pad(painted, sides)
    mask = np.zeros_like(new)
    x0, y0, x1, y1 = enlarged.bounds if painted is None and not any(margins) else enlarged.inside
    step = max(1, _STRIP_PIXELS // max(1, x1 - x0))

    def blend(y: int) -> None:
        part = slice(y, min(y + step, y1)), slice(x0, x1)
        used = np.maximum(enlarged.mask(part, given[part]), new[part])
        if used.any():
            mask[part] = used
            canvas[part] = _mixed(canvas[part], used, enlarged, part)

    strips = range(y0, y1, step)
    threads = ThreadPoolExecutor(min(4, torch.get_num_threads()))
    try:
        for done, _ in enumerate(threads.map(blend, strips), start=1):
            callback(done, len(strips))
    finally:
        threads.shutdown(cancel_futures=True)
    return canvas, mask


def _margins(placement: Placement) -> tuple[int, int, int, int]:
    """Whole pixels of the original's scale by which the result is larger than the original."""
    left, top, right, bottom = placement.box
    beyond = (-left, -top, right - placement.original[0], bottom - placement.original[1])
    pairs = zip(beyond, placement.margins, strict=True)
    sides = [max(0, round(pixels)) if added else 0 for pixels, added in pairs]
    return sides[0], sides[1], sides[2], sides[3]


Part = tuple[slice, slice]
"""Rows and columns of the result."""


class _Enlarged:
    """A layer in the pixels of the result. ``inside``: left, top, right and bottom edge of what it
    covers; ``bounds``: of where its mask is not 0."""

    def __init__(self, layer: Layer, placement: Placement, extended: bool):
        width, height = placement.original
        self.placement = placement
        x, y = placement.box[0::2], placement.box[1::2]
        beyond = [0.0]
        if extended:  # what lies beside the layer on the larger canvas is its edge, repeated
            near, far = placement.to_model(0, 0), placement.to_model(width, height)
            beyond = [*(-n for n in near), far[0] - placement.size[0], far[1] - placement.size[1]]
            x, y = (0.0, float(width)), (0.0, float(height))
        self.pad = 2 + max(0, math.ceil(max(beyond)))
        self.inside = self._clipped(x[0], y[0], x[1], y[1])
        rows, columns = (np.flatnonzero(layer.mask.amax(i).numpy() > 0) for i in (1, 0))
        self.bounds = (0, 0, 0, 0)
        if len(rows):
            first = placement.to_original(columns[0] - 1.0, rows[0] - 1.0)
            last = placement.to_original(columns[-1] + 2.0, rows[-1] + 2.0)
            x0, y0, x1, y1 = self._clipped(*first, *last)
            a, b, c, d = self.inside
            self.bounds = max(a, x0), max(b, y0), min(c, x1), min(d, y1)
        self._mask, self._reach = self._map(layer.mask), self._map(layer.reach)
        self._shift = [self._map(one) for one in layer.shift]
        self._gain = None
        if layer.gain is not None:
            self._gain = [[self._map(one) for one in row] for row in layer.gain]
        self._fine = None
        if layer.fine is not None:
            times = layer.fine.picture.width // placement.size[0]
            edge = self.pad * times
            picture = np.pad(
                np.asarray(layer.fine.picture), ((edge, edge), (edge, edge), (0, 0)), "edge"
            )
            coarse = [self._map(one) for one in layer.fine.coarse]
            self._fine = Image.fromarray(picture), coarse, self._map(layer.fine.share)

    def mask(self, part: Part, given: np.ndarray) -> np.ndarray:
        own = self._part(self._mask, part, Image.Resampling.BILINEAR)
        reach = self._part(self._reach, part, Image.Resampling.BILINEAR)
        whole = np.maximum(own, given.astype(np.float32) / 255) * reach
        return (whole.clip(0, 1) * 255).round().astype(np.uint8)

    def colours(self, part: Part, before: np.ndarray) -> np.ndarray:
        """(3, h, w) of what the layer makes of ``before`` (3 or 1, h, w), all float32."""
        cubic, linear = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
        after = np.stack([self._part(one, part, cubic) for one in self._shift])
        for i, row in enumerate(self._gain or ()):
            for j, one in enumerate(row):
                after[i] += self._part(one, part, linear) * before[min(j, len(before) - 1)]
        if self._fine:
            picture, coarse, share = self._fine
            lacking = self._part(picture, part, cubic).transpose(2, 0, 1).astype(np.float32) / 255
            lacking -= np.stack([self._part(one, part, cubic) for one in coarse])
            after += lacking * self._part(share, part, linear)
        return after

    def _map(self, values: Tensor) -> Image.Image:
        return Image.fromarray(np.pad(values.numpy(), self.pad, "edge"))

    def _part(self, map: Image.Image, part: Part, method: Image.Resampling) -> np.ndarray:
        rows, columns = part
        first = self.placement.to_model(columns.start, rows.start)
        last = self.placement.to_model(columns.stop, rows.stop)
        times = map.width / self._mask.width
        box = [max(0.0, (n + self.pad) * times) for n in (*first, *last)]
        box[2:] = min(box[2], map.width), min(box[3], map.height)
        size = columns.stop - columns.start, rows.stop - rows.start
        left, top, right, bottom = box
        return np.asarray(map.resize(size, method, (left, top, right, bottom)))

    def _clipped(self, x0: float, y0: float, x1: float, y1: float) -> tuple[int, int, int, int]:
        """The pixels whose middle lies between these edges."""
        width, height = self.placement.original
        return (
            max(0, math.ceil(x0 - 0.5)),
            max(0, math.ceil(y0 - 0.5)),
            min(width, math.floor(x1 - 0.5) + 1),
            min(height, math.floor(y1 - 0.5) + 1),
        )


def _mixed(part: np.ndarray, used: np.ndarray, layer: _Enlarged, place: Part) -> np.ndarray:
    white, colours = white_of(part), 3 if part.shape[2] >= 3 else 1
    before = np.ascontiguousarray(part[..., :colours].transpose(2, 0, 1)).astype(np.float32)
    before /= white
    mixed = layer.colours(place, before)
    if colours == 1:
        mixed = np.tensordot(_BRIGHTNESS, mixed, 1)[None]
    mixed -= before
    mixed *= used.astype(np.float32) / 255
    mixed += before
    mixed = mixed.clip(0, 1, out=mixed)
    mixed *= white
    mixed = np.rint(mixed, out=mixed) if part.dtype.kind == "u" else mixed
    whole, new = part.copy(), mixed.astype(part.dtype)
    for i in range(colours):
        np.copyto(whole[..., i], new[i], where=used > 0)
    return whole

"""Masks as people paint them: which image tokens they touch, and the region around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..options import Option
from .files import Picture, load_mask
from .placement import Box, Size

UNPAINTED = 0.05
"""Values below this are unpainted: what resizing and lossy files leave beside a stroke."""
_ROUNDING = 1e-5
"""Shares of an image token up to this are rounding."""
_BAND, _MOST_SHARES = 16, 2**13
"""Rows or columns of a grid at once, and how many shares of their pixels at once where there are
more of them: most pixels are in no cell of a band."""
_COVERAGE = Option(float, 0.0, "", low=0.0, high=1.0, name="coverage")
_GROW = Option(int, 0, "", low=0, high=4096, name="grow")
Region = tuple[int, int, int, int]
"""Left, top, right and bottom edge of a part of a picture, in whole pixels."""


def mask_values(mask: Picture) -> Tensor:
    """(1, h, w) float32 in 0 … 1 of a picture that is white where painted. Raises ``InputError``
    where it cannot be read."""
    return torch.from_numpy(np.array(load_mask(mask))).float()[None] / 255


def is_painted(mask: Tensor) -> bool:
    """Whether anything is painted; what nodes give in place of no mask is all 0."""
    return bool((mask >= UNPAINTED).any())


def covered(mask: Tensor, grid: tuple[int, int], box: Box | None = None) -> Tensor:
    """(B, H, W) float32: the painted share of each cell of a grid, by exact areas of pixels.

    ``mask``: (B, h, w) 0 … 1, of any size. ``box``: where the grid lies, in the mask's pixels; all
    of it by default. What lies beyond the mask is not painted.
    """
    height, width = mask.shape[-2:]
    left, top, right, bottom = box or (0.0, 0.0, float(width), float(height))
    rows = []
    for pixels, shares in _overlaps(top, bottom, grid[0], height):
        near = mask[..., pixels, :]
        painted = torch.where(near >= UNPAINTED, near, 0).float()
        rows.append(shares.to(mask.device) @ painted)
    strips = torch.cat(rows, -2)
    columns = [
        strips[..., pixels] @ shares.T.to(mask.device)
        for pixels, shares in _overlaps(left, right, grid[1], width)
    ]
    return torch.cat(columns, -1)


def _overlaps(first: float, last: float, cells: int, pixels: int) -> Iterator[tuple[slice, Tensor]]:
    """Band by band of the cells between two edges: the pixels near it, and which share of each cell
    each of them is, (cells, pixels) float32."""
    edges = torch.linspace(first, last, cells + 1, dtype=torch.float64)
    each = max(_BAND, math.isqrt(_MOST_SHARES * cells // max(1, pixels)))
    for start in range(0, cells, each):
        own = edges[start : start + each + 1, None]
        begin = min(max(0, math.floor(own[0])), pixels - 1)
        end = min(max(begin + 1, math.ceil(own[-1])), pixels)
        places = torch.arange(begin, end, dtype=torch.float64)
        shared = torch.minimum(own[1:], places + 1) - torch.maximum(own[:-1], places)
        shares = (shared.clamp_min(0) * (cells / (last - first))).float()
        yield slice(begin, end), shares


def cells_of(
    mask: Tensor,
    grid: tuple[int, int],
    coverage: float = 0.0,
    grow: int = 0,
    *,
    box: Box | None = None,
) -> Tensor:
    """(B, H, W) bool: the image tokens of which more than ``coverage`` of the area is painted, and
    ``grow`` more on every side of them.

    ``mask``, ``box``: as for :func:`covered`. ``coverage``: 0 … 1; 0 takes every token that is
    touched.
    """
    _COVERAGE.check(coverage)
    _GROW.check(grow)
    cells = covered(mask, grid, box) > coverage + _ROUNDING
    if not grow:
        return cells
    return largest_near(cells.float(), grow) > 0


def largest_near(maps: Tensor, reach: int) -> Tensor:
    """The largest value of ``maps`` (B, H, W) within ``reach`` on every side, rows first and then
    columns: a square window at once takes its area in time."""
    window = 2 * reach + 1
    rows = F.max_pool2d(maps[:, None], (1, window), 1, (0, reach))
    return F.max_pool2d(rows, (window, 1), 1, (reach, 0))[:, 0]


def bounds_of(mask: Tensor, size: Size) -> Region:
    """The smallest part of a picture of ``size`` that holds all that is painted in ``mask``
    (h, w), which covers the whole picture and must be painted."""
    painted = mask >= UNPAINTED
    edges = []
    for pixels, along in zip(size, (painted.any(0), painted.any(1)), strict=True):
        index, scale = along.nonzero()[:, 0], pixels / len(along)
        edges.append((math.floor(int(index[0]) * scale), math.ceil((int(index[-1]) + 1) * scale)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def regions_around(
    bounds: Sequence[Region], size: Size, context: float, seen_size: Callable[[Size], Size]
) -> list[Region]:
    """The regions of one size that a model gets of pictures of ``size``, one around each of
    ``bounds``.

    As small as the bounds and ``context`` on every side, in multiples of a bound's longer side,
    allow, in the shape that the model sees (``seen_size``), but not smaller than the model's own
    picture, where nothing would be gained. All lie inside the picture.
    """
    most = [max(box[i + 2] - box[i] for box in bounds) for i in (0, 1)]
    margin = 2 * context * max(most)
    want = [min(pixels, side + margin) for pixels, side in zip(size, most, strict=True)]
    width, height = (max(1, math.ceil(side)) for side in want)
    seen = seen_size((width, height))
    scale = max(width / seen[0], height / seen[1], 1)
    region = [min(pixels, math.ceil(side * scale)) for pixels, side in zip(size, seen, strict=True)]
    region = _in_shape(region, most, seen_size((region[0], region[1])))
    return [_around(box, size, region) for box in bounds]


def _in_shape(region: Sequence[int], least: Sequence[int], seen: Size) -> Size:
    """``region`` cut to the shape of ``seen``, as far as ``least`` fits into it."""
    width, height = region
    width = max(least[0], min(width, round(height * seen[0] / seen[1])))
    height = max(least[1], min(height, round(width * seen[1] / seen[0])))
    return width, height


def _around(box: Region, size: Size, region: Sequence[int]) -> Region:
    starts = []
    for i in (0, 1):
        middle = (box[i] + box[i + 2] - region[i]) // 2
        starts.append(min(max(0, middle), size[i] - region[i]))
    return starts[0], starts[1], starts[0] + region[0], starts[1] + region[1]

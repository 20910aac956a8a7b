"""NVIDIA's 4-bit floats (E2M1) with a float8 scale for every 16 neighbours, as in ComfyUI."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import BLOCK

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LARGEST, _LARGEST_SCALE = 6.0, 448.0
_ROWS, _COLUMNS = 128, 4
"""Of a tile of scales."""


def pack(weight: Tensor) -> dict[str, Tensor]:
    """What is stored of ``weight`` (outputs, inputs), both multiples of 16: ``weight`` uint8, two
    numbers a byte, the first in the upper bits; ``weight_scale`` of blocks, in tiles; and
    ``weight_scale_2`` of all, a power of two, so that bfloat16 holds every dequantised number."""
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    largest = blocks.abs().amax(dim=-1)
    whole = power_of_two_above(largest.max().item() / (_LARGEST * _LARGEST_SCALE))
    scale = (largest / (_LARGEST * whole)).clamp_max_(_LARGEST_SCALE).to(torch.float8_e4m3fn)
    step = scale.float().mul_(whole)[..., None]
    codes = _codes(torch.where(step == 0, 0.0, blocks / step.clamp_min(torch.finfo().tiny)))
    pairs = codes.flatten(1).unflatten(1, (-1, 2))
    return {
        "weight": pairs[..., 0] << 4 | pairs[..., 1],
        "weight_scale": _tiled(scale),
        "weight_scale_2": torch.tensor(whole),
    }


def unpack(weight: Tensor, scale: Tensor, whole: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (outputs, inputs) in ``dtype`` of what :func:`pack` gave, on one device."""
    outputs, blocks = weight.shape[0], weight.shape[1] * 2 // BLOCK
    values = torch.tensor([*_VALUES, *(-value for value in _VALUES)], dtype=dtype)
    pairs = torch.cartesian_prod(values, values).to(weight.device)
    numbers = F.embedding(weight.int(), pairs).view(outputs, blocks, BLOCK)
    steps = _untiled(scale, outputs, blocks).to(dtype) * whole.to(dtype)
    return numbers.mul_(steps[..., None]).view(outputs, -1)


def _codes(numbers: Tensor) -> Tensor:
    """The nearest of 16 values to each number; of two that are as near, the one of even code."""
    bounds = [(low + high) / 2 for low, high in pairwise(_VALUES)]
    for code in range(1, len(bounds), 2):  # a tie goes up to an even code
        bounds[code] = math.nextafter(bounds[code], 0.0)
    limits = torch.tensor(bounds, dtype=torch.float64, device=numbers.device)
    codes = torch.bucketize(numbers.abs().double(), limits).to(torch.uint8)
    return codes | (numbers.signbit().to(torch.uint8) << 3)


def _tiled(scale: Tensor) -> Tensor:
    rows, columns = scale.shape
    raw = F.pad(scale.view(torch.uint8), (0, -columns % _COLUMNS, 0, -rows % _ROWS))
    tiles = raw.unflatten(1, (-1, _COLUMNS)).unflatten(0, (-1, 4, 32)).permute(0, 3, 2, 1, 4)
    return tiles.reshape(raw.shape).view(scale.dtype)


def _untiled(tiles: Tensor, rows: int, columns: int) -> Tensor:
    raw = tiles.view(torch.uint8)
    parts = raw.reshape(raw.shape[0] // _ROWS, raw.shape[1] // _COLUMNS, 32, 4, _COLUMNS)
    scale = parts.permute(0, 3, 2, 1, 4).reshape(raw.shape)
    return scale[:rows, :columns].contiguous().view(tiles.dtype)


def power_of_two_above(value: float) -> float:
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)

"""Products of int8 weights with inputs that are rounded to int8, each row by its own largest value:
int32 sums, which are exact, so that a row's result does not depend on the others'."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
PART_BYTES = 2**25
"""Of the sums that are scaled at a time: 4 bytes each, and 4 more of their floats."""
_FEWEST_ROWS = 17
_MULTIPLE = 8


def can_multiply(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch multiplies int8 of these shapes on their device: on a CPU any, on CUDA as
    cuBLAS does."""
    rows = x.numel() // max(1, x.shape[-1])
    if x.device.type == "cuda":
        fitting = all(size % _MULTIPLE == 0 for size in weight.shape)
        return fitting and rows >= _FEWEST_ROWS
    return x.device.type == "cpu" and rows > 0


def multiply(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """(…, outputs) of ``x`` (…, inputs) in its dtype. ``weight``: (outputs, inputs) int8.
    ``scale``: () or (outputs, 1). A row that is not finite stays so."""
    rows = x.reshape(-1, x.shape[-1])
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True).float()
    row_scale = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    whole = (rows / row_scale).round_().to(torch.int8)
    column_scale = scale.reshape(1, -1).to(x.device, torch.float32)
    result = x.new_empty(len(rows), len(weight))
    step = max(_FEWEST_ROWS, PART_BYTES // (8 * len(weight)))
    for start in range(0, len(rows), step):
        part = slice(min(start, max(0, len(rows) - step)), start + step)  # none of too few rows
        sums = torch.ops.aten._int_mm(whole[part], weight.t())
        result[part] = (sums * row_scale[part]).mul_(column_scale)
    return result.unflatten(0, x.shape[:-1])

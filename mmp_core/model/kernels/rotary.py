"""Rotary position embeddings in one pass: every number is read and written once."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 16
"""Heads that one program turns, with the angles of one position."""


def can_rotate(x: Tensor, table: Tensor) -> bool:
    """Whether :func:`rotate` takes these: angles in float32, the features of a head in a row."""
    return table.dtype == torch.float32 and x.stride(-1) == table.stride(-1) == 1


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """:func:`..rotary.rotate` of ``x`` (B, heads, n, head_dim) bit for bit: products are rounded
    before they are added, as torch does. ``table``: (2, n, head_dim) or (2, B, 1, n, head_dim)
    float32."""
    batch, heads, length, features = x.shape
    turned = torch.empty_like(x)  # strides included
    own = table.ndim > 3
    angles = (table.stride(0), table.stride(1) if own else 0, table.stride(-2))
    half = features // 2
    block = {"HEADS": HEADS, "HALF": triton.next_power_of_2(half)}
    launch: Any = _rotate_kernel[(batch * length, triton.cdiv(heads, HEADS))]
    if x.numel():
        strides = (*x.stride()[:3], *turned.stride()[:3], *angles)
        launch(x, turned, table, heads, length, half, *strides, **block, enable_fp_fusion=False)
    return turned


@triton.jit(do_not_specialize=["length"])
def _rotate_kernel(
    x,
    turned,
    table,
    heads,
    length,
    half,
    batch_stride,
    head_stride,
    row_stride,
    turned_batch_stride,
    turned_head_stride,
    turned_row_stride,
    sine_stride,
    table_batch_stride,
    table_row_stride,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    sample, row = program // length, program % length
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    feature = tl.arange(0, HALF)
    inside = feature < half
    angle = table + sample * table_batch_stride + row * table_row_stride + feature
    cosine = tl.load(angle, inside, 0.0)[None, :]
    sine = tl.load(angle + sine_stride, inside, 0.0)[None, :]
    head = head.to(tl.int64)[:, None]
    mask = (head < heads) & inside[None, :]
    at = x + sample * batch_stride + row * row_stride + head * head_stride + feature[None, :]
    first = tl.load(at, mask, 0.0).to(tl.float32)
    second = tl.load(at + half, mask, 0.0).to(tl.float32)
    to = turned + sample * turned_batch_stride + row * turned_row_stride
    to += head * turned_head_stride + feature[None, :]
    dtype = turned.dtype.element_ty
    tl.store(to, (first * cosine - second * sine).to(dtype), mask)
    tl.store(to + half, (second * cosine + first * sine).to(dtype), mask)

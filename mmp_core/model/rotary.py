"""Rotary position embeddings (RoPE), in the half-rotation layout of the released checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import available


def rotary_table(length: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """RoPE angles: (2, length, head_dim) float32, cosines then sines; both halves are equal."""
    exponent = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    inverse_frequency = 1.0 / (theta**exponent)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * inverse_frequency
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Apply RoPE to ``x`` (B, heads, n, head_dim) in the table's dtype; returns ``x``'s dtype.
    ``table``: (2, n, head_dim), or (2, B, 1, n, head_dim) where the samples' positions differ.
    Without gradients fewer temporaries are made; the bits are the same."""
    first, second = x.chunk(2, dim=-1)
    if torch.is_grad_enabled():
        t = x.to(table.dtype)
        rotated = torch.cat((-second, first), dim=-1).to(table.dtype)
        return (t * table[0] + rotated * table[1]).to(x.dtype)
    if available(x.device):
        from .kernels import rotary

        if rotary.can_rotate(x, table):
            with torch.cuda.device_of(x):
                return rotary.rotate(x, table)
    sines = table[1][..., : first.shape[-1]]
    turned = x * table[0]
    turned[..., : first.shape[-1]].sub_(second * sines)
    turned[..., first.shape[-1] :].add_(first * sines)
    return turned.to(x.dtype)

"""Quantisation formats: how a linear layer's weight may be stored, in one byte each. Imports no
torch, so that options can be declared from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Format:
    """``name``: ComfyUI's. ``dtype_name``: torch's name of the dtype of a stored weight.
    ``largest``: the largest number that it holds. ``per_row``: whether each row of the weight has a
    scale of its own; else the weight has one. One byte for each weight."""

    name: str
    dtype_name: str
    largest: int
    per_row: bool

    @property
    def storage(self) -> torch.dtype:
        """Dtype of a stored weight."""
        import torch

        return getattr(torch, self.dtype_name)

    def scale_shape(self, outputs: int) -> tuple[int, ...]:
        """Shape of the scale of a weight of ``outputs`` rows."""
        return (outputs, 1) if self.per_row else ()


FORMATS = {
    "fp8": Format("float8_e4m3fn", "float8_e4m3fn", 448, per_row=False),
    "int8": Format("int8_tensorwise", "int8", 127, per_row=True),
}
"""By the names that ``convert --quantize`` takes; a new format is one more line here."""

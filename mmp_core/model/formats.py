"""Quantisation formats: how a linear layer's weight may be stored. Imports no torch, so that
options can be declared from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK = 16
"""Neighbours in a row that share a scale where a format has scales of blocks."""


@dataclass(frozen=True)
class Format:
    """``name``: ComfyUI's. ``dtype_name``: torch's name of the dtype of a stored byte.
    ``largest``: the largest number that is stored. ``per_row``: whether each row of the weight has
    a scale of its own; else the weight has one. ``packed``: two numbers of 4 bits to a byte, with
    scales of blocks in float8 besides."""

    name: str
    dtype_name: str
    largest: int
    per_row: bool = False
    packed: bool = False

    @property
    def storage(self) -> torch.dtype:
        """Dtype of a stored weight."""
        import torch

        return getattr(torch, self.dtype_name)

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether a layer of these sizes can be stored so."""
        return not self.packed or (inputs % BLOCK == 0 and outputs % BLOCK == 0)

    def parts(self, inputs: int, outputs: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of what is stored of a layer, by the last part of its name."""
        import torch

        if not self.packed:
            scale = (outputs, 1) if self.per_row else ()
            stored = self.storage, (outputs, inputs)
            return {"weight": stored, "weight_scale": (torch.float32, scale)}
        # the scales of blocks lie in tiles of 128 x 4, as cuBLAS reads them
        tiles = (-(-outputs // 128) * 128, -(-inputs // (4 * BLOCK)) * 4)
        return {
            "weight": (self.storage, (outputs, inputs // 2)),
            "weight_scale": (torch.float8_e4m3fn, tiles),
            "weight_scale_2": (torch.float32, ()),
        }


FORMATS = {
    "fp8": Format("float8_e4m3fn", "float8_e4m3fn", 448),
    "int8": Format("int8_tensorwise", "int8", 127, per_row=True),
    "nvfp4": Format("nvfp4", "uint8", 6, packed=True),
}
"""By the names that ``convert --quantize`` takes; a new format is one more line here."""

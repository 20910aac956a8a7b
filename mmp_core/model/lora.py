"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) by activation bypass.

An adapted linear layer computes ``W x + strength · B(A x)``. ``W`` is never merged with the
adapter, copied or read, so it may be quantised, or be streamed by a host.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .config import BLOCK_LAYERS
from .transformer import MaskedDiffusionTransformer


class CastLinear(nn.Linear):
    """Computes in its input's dtype, whatever that of its weight, which is not initialised."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


class CastOperations:
    """Layers of an adapter without a host."""

    Linear = CastLinear


class LayerShape(NamedTuple):
    """Sizes of one adapted layer."""

    inputs: int
    outputs: int
    rank: int


class LowRank(nn.Module):
    """``B(A x)``: (…, inputs) to (…, outputs)."""

    def __init__(self, shape: LayerShape, operations: Any, **factory):
        super().__init__()
        self.lora_A = operations.Linear(shape.inputs, shape.rank, bias=False, **factory)
        self.lora_B = operations.Linear(shape.rank, shape.outputs, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(x))


def adaptable_layers(
    transformer: MaskedDiffusionTransformer, layers: Collection[str] = BLOCK_LAYERS
) -> dict[str, Any]:
    """Linear layers of the blocks by their full names: modules with ``in_features`` and
    ``out_features``, plain, quantised or a host's own.

    ``layers``: last components of the names wanted. The head is not among them, since
    :meth:`MaskedDiffusionTransformer.logits` uses its weight directly. Raises ``InputError``.
    """
    if unknown := sorted(set(layers) - set(BLOCK_LAYERS)):
        raise InputError(
            f"{', '.join(unknown)} cannot be adapted: choose among {', '.join(BLOCK_LAYERS)}."
        )
    if not layers:
        raise InputError(f"No layers to adapt: choose among {', '.join(BLOCK_LAYERS)}.")
    return {
        name: layer
        for name, layer in transformer.named_modules()
        if ".blocks." in name and name.rpartition(".")[2] in layers
    }


class Adapter(nn.Module):
    """The low-rank matrices of some layers of a transformer, named as those layers are.

    ``shapes``: of each layer to adapt. ``operations`` offers ``Linear`` with torch's signature,
    which casts its weight to its input's dtype: a host's streams it, too.
    ``device``: where the transformer computes, which may be another than where its weights are.
    The state dict holds ``<layer>.lora_A.weight`` (rank, inputs) and ``<layer>.lora_B.weight``
    (outputs, rank). Values are not initialised.
    """

    def __init__(
        self,
        shapes: Mapping[str, LayerShape],
        *,
        operations: Any = CastOperations,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.shapes = dict(shapes)
        for name, shape in self.shapes.items():
            _place(self, name, LowRank(shape, operations, dtype=dtype, device=device))

    @property
    def low_ranks(self) -> dict[str, LowRank]:
        """The matrices of each layer, by its name."""
        return {name: cast(LowRank, self.get_submodule(name)) for name in self.shapes}

    def attach(
        self, transformer: MaskedDiffusionTransformer, strength: float = 1.0
    ) -> AttachedAdapter:
        """Add this to what ``transformer`` computes until the result is removed. Several adapters
        may be attached at once; they add up."""
        return AttachedAdapter(self, transformer, strength)


class AttachedAdapter:
    """``strength`` times an adapter, added to what the layers of a transformer compute."""

    def __init__(self, adapter: Adapter, transformer: MaskedDiffusionTransformer, strength: float):
        self._strength, self.active = strength, True
        self._handles = [
            transformer.get_submodule(name).register_forward_hook(self._adding(low_rank))
            for name, low_rank in adapter.low_ranks.items()
        ]

    def _adding(self, low_rank: LowRank):
        def add(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            if not self.active:
                return output
            return torch.add(output, low_rank(inputs[0]), alpha=self._strength)

        return add

    @contextmanager
    def switched(self, active: bool) -> Iterator[None]:
        """Inside, the transformer computes with this adapter only if it is to be ``active``."""
        before, self.active = self.active, active
        try:
            yield
        finally:
            self.active = before

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, module)

"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) by activation bypass.

An adapted linear layer computes ``W x + strength · B(A x)``. ``W`` is never merged with the
adapter, copied or read, so it may be quantised, or be streamed by a host. With DoRA (Liu et al.
2024, arXiv 2402.09353) the rows of ``W + B A`` are scaled to the lengths ``m``, which are learnt,
too; the lengths that they have are asked of the layer itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, shown
from ..outside import field
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
    """Sizes of one adapted layer, and whether it has magnitudes (DoRA)."""

    inputs: int
    outputs: int
    rank: int
    dora: bool = False


STRENGTH = field(float, low=-1e6, high=1e6)
"""Of an adapter."""
_ROWS_AT_ONCE, _LEAST_LENGTH = 1024, 1e-12


class LowRank(nn.Module):
    """``B(A x)``: (…, inputs) to (…, outputs). ``lora_magnitude_vector``: (outputs,) float32 with
    DoRA, else ``None``."""

    lora_magnitude_vector: nn.Parameter | None

    def __init__(self, shape: LayerShape, operations: Any, **factory):
        super().__init__()
        self.lora_A = operations.Linear(shape.inputs, shape.rank, bias=False, **factory)
        self.lora_B = operations.Linear(shape.rank, shape.outputs, bias=False, **factory)
        lengths = torch.empty(shape.outputs, dtype=torch.float32, device=factory.get("device"))
        self.lora_magnitude_vector = nn.Parameter(lengths) if shape.dora else None
        self._squares: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(x))

    def forget_layer(self) -> None:
        """To be attached to another layer, or one whose weight has changed."""
        self._squares = None

    def squares(self, layer: nn.Module, like: Tensor) -> Tensor:
        """(outputs,) float32: the squared lengths of the rows of ``layer``'s weight, which is seen
        through what it makes of unit vectors, so that it may be quantised or streamed. ``like``:
        of the dtype and on the device of its inputs."""
        if self._squares is None or self._squares.device != like.device:
            with torch.inference_mode(False), torch.no_grad():
                count, total = like.shape[-1], None
                for start in range(0, count, _ROWS_AT_ONCE):
                    rows = torch.arange(start, min(start + _ROWS_AT_ONCE, count))
                    unit = like.new_zeros(len(rows), count)
                    unit[torch.arange(len(rows)), rows] = 1
                    part = layer.forward(unit).float().square().sum(dim=0)
                    total = part if total is None else total + part
            self._squares = total
        assert self._squares is not None
        return self._squares

    def row_scale(self, layer: nn.Module, like: Tensor, scale: float) -> Tensor:
        """(outputs,) float32: by what the rows of ``W + scale · B A`` are scaled. As in the paper
        (§4.3) no gradient flows through their lengths."""
        assert self.lora_magnitude_vector is not None
        with torch.inference_mode(False), torch.no_grad():
            a, b = (
                weight.to(like.device, copy=weight.is_inference())
                for weight in (self.lora_A.weight, self.lora_B.weight)
            )
            through = layer.forward(a.to(like.dtype)).float().T
            a, b = a.float(), b.float()
            lengths = self.squares(layer, like) + 2 * scale * (through * b).sum(dim=1)
            lengths = (lengths + scale**2 * _squared_rows(b, a)).clamp_min(0).sqrt()
        return self.lora_magnitude_vector.to(like.device) / lengths.clamp_min(_LEAST_LENGTH)


def _squared_rows(b: Tensor, a: Tensor) -> Tensor:
    """The squared lengths of the rows of ``b @ a``, with at most the memory of either."""
    if a.shape[0] <= a.shape[1]:
        return ((b @ (a @ a.T)) * b).sum(dim=1)
    return torch.cat([(part @ a).square().sum(dim=1) for part in b.split(_ROWS_AT_ONCE)])


def adaptable_layers(
    transformer: MaskedDiffusionTransformer, layers: Collection[str] = BLOCK_LAYERS
) -> dict[str, Any]:
    """Linear layers of the blocks by their full names: modules with ``in_features`` and
    ``out_features``, plain, quantised or a host's own.

    ``layers``: last components of the names wanted. The head is not among them, since
    :meth:`MaskedDiffusionTransformer.logits` uses its weight directly. Raises ``InputError``.
    """
    known = ", ".join(BLOCK_LAYERS)
    if isinstance(layers, str) or not isinstance(layers, Collection):
        raise InputError(f"layers is {shown(layers)}; expected some of {known}.")
    if unknown := [layer for layer in layers if layer not in BLOCK_LAYERS]:
        names = ", ".join(sorted(map(str, unknown)))
        raise InputError(f"{names} cannot be adapted: choose among {known}.")
    if not len(layers):
        raise InputError(f"No layers to adapt: choose among {known}.")
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
    (outputs, rank), with DoRA ``<layer>.lora_magnitude_vector`` (outputs,). Values are not
    initialised.
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
        self, transformer: MaskedDiffusionTransformer, strength: float = 1.0, scale: float = 1.0
    ) -> AttachedAdapter:
        """Add this to what ``transformer`` computes until the result is removed. Several adapters
        may be attached at once; they add up. ``scale``: B is multiplied by it, with DoRA before
        lengths are taken. Raises ``InputError`` for a strength that is not a number."""
        return AttachedAdapter(self, transformer, strength, scale)


_attached_doras = WeakKeyDictionary[nn.Module, list["AttachedAdapter"]]()


class AttachedAdapter:
    """``strength`` times what an adapter changes, added to what the layers of a transformer
    compute."""

    def __init__(
        self,
        adapter: Adapter,
        transformer: MaskedDiffusionTransformer,
        strength: float,
        scale: float,
    ):
        if not STRENGTH.fits(strength):
            raise InputError(
                f"The adapter's strength is {shown(strength)}; expected {STRENGTH.expected}."
            )
        self._strength, self._scale, self.active = strength, scale, True
        self._row_scales: dict[LowRank, Tensor] = {}
        self._doras: list[nn.Module] = []
        self._handles = []
        for name, low_rank in adapter.low_ranks.items():
            layer, dora = (
                transformer.get_submodule(name),
                low_rank.lora_magnitude_vector is not None,
            )
            if dora:
                low_rank.forget_layer()
                self._doras.append(layer)
                _attached_doras.setdefault(layer, []).append(self)
            hook = self._scaling(low_rank) if dora else self._adding(low_rank)
            self._handles.append(layer.register_forward_hook(hook, prepend=dora))

    def _adding(self, low_rank: LowRank):
        strength = self._strength * self._scale

        def add(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            if not self.active:
                return output
            return torch.add(output, low_rank(inputs[0]), alpha=strength)

        return add

    def _scaling(self, low_rank: LowRank):
        """The hook of DoRA, which needs what the layer itself computes: that is its output unless
        another one was at it before."""

        def scale(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            if not self.active:
                return output
            (x,) = inputs
            active = [each for each in _attached_doras[layer] if each.active]
            base = output if active[-1] is self else layer.forward(x)
            row_scale = self._row_scale(low_rank, layer, x)
            more = (row_scale - 1).to(base.dtype) * base  # exact to little changes in bfloat16
            more = more + (self._scale * row_scale).to(base.dtype) * low_rank(x)
            return torch.add(output, more, alpha=self._strength)

        return scale

    def _row_scale(self, low_rank: LowRank, layer: nn.Module, x: Tensor) -> Tensor:
        magnitude = low_rank.lora_magnitude_vector
        if magnitude is not None and magnitude.requires_grad:
            return low_rank.row_scale(layer, x, self._scale)
        if low_rank not in self._row_scales or self._row_scales[low_rank].device != x.device:
            self._row_scales[low_rank] = low_rank.row_scale(layer, x, self._scale).clone()
        return self._row_scales[low_rank]

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
        for layer in self._doras:
            _attached_doras[layer].remove(self)
        self._handles.clear()
        self._doras.clear()


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, module)

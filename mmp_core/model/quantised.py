"""Quantised weights in ComfyUI's formats: a byte per weight or less, dequantised on use, or
multiplied as int8 where that was asked for.

A quantised layer ``X`` is stored as ``X.weight``, ``X.weight_scale`` and ``X.comfy_quant`` (uint8:
JSON that names the format); with 4 bits also ``X.weight_scale_2``. Scales are such that bfloat16
and float32 hold what they make exactly, so that every implementation dequantises to the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..outside import small_json
from . import fp4, int8
from .formats import BLOCK, FORMATS, Format

_MARKER = ".comfy_quant"
_MARKER_BYTES = 1024
_RAW = {1: torch.int8, 4: torch.int32}
TensorMap = Callable[[Tensor], Tensor]


def quantise(weight: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """``weight`` (out, in) as stored in one byte each, and its scale: () or (out, 1) float32.
    Raises ``ValueError`` for values that are not finite."""
    largest = weight.abs().amax(dim=1, keepdim=True).float()
    if not largest.isfinite().all():
        raise ValueError("values that are not finite")
    if form.per_row:
        scale = _as_bfloat16_above(largest / form.largest)
    else:
        scale = torch.tensor(fp4.power_of_two_above(largest.max().item() / form.largest))
    scaled = weight.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)
    if not form.storage.is_floating_point:  # a cast to whole numbers cuts off what it cannot hold
        scaled = scaled.round_().clamp_(-form.largest, form.largest)
    return scaled.to(form.storage), scale


def parts_of(weight: Tensor, form: Format) -> dict[str, Tensor]:
    """What is stored of a layer with ``weight`` (out, in): tensors by the last part of their names.
    Raises ``ValueError`` for values that are not finite."""
    if not form.packed:
        stored, scale = quantise(weight, form)
        parts = {"weight": stored, "weight_scale": scale}
    elif not weight.isfinite().all():
        raise ValueError("values that are not finite")
    else:
        parts = fp4.pack(weight)
    return {**parts, _MARKER[1:]: marker(form)}


def marker(form: Format) -> Tensor:
    """The ``comfy_quant`` tensor of a layer. It asks that inputs are not quantised."""
    about = {"format": form.name, "full_precision_matrix_mult": True}
    return torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)


def _as_bfloat16_above(values: Tensor) -> Tensor:
    """Non-negative float32, each raised to the next value that bfloat16 holds."""
    bits = values.view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)


_OTHER_SCALES = {
    *("weight_scale", "weight_scale_inv", "scale_weight", "input_scale", "scale_input"),
    *("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_zero_point", "weight_shape"),
    *("absmax", "nested_absmax", "quant_map", "nested_quant_map", "SCB", "scaled_fp8"),
}
"""Last parts of the names of what other tools store beside quantised weights, or instead."""


def formats_of(weights: Mapping[str, Tensor]) -> dict[str, Format]:
    """The format of each quantised layer. Raises ``CheckpointError`` for an unknown one."""
    known = {form.name: form for form in FORMATS.values()}
    formats = {}
    for layer in (name[: -len(_MARKER)] for name in weights if name.endswith(_MARKER)):
        try:
            marked = weights[layer + _MARKER]
            if marked.dtype != torch.uint8 or marked.numel() > _MARKER_BYTES:
                raise ValueError
            name = small_json(bytes(marked.tolist()))["format"]
            formats[layer] = known[name]
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{layer} is quantised in an unknown format; expected {', '.join(known)}."
            ) from None
        for part in formats[layer].parts(BLOCK, BLOCK):
            if f"{layer}.{part}" not in weights:
                raise CheckpointError(f"{layer}.{part} is missing: the checkpoint is incomplete.")
    for name in weights:
        layer, _, last = name.rpartition(".")
        if (last in _OTHER_SCALES or ".quant_state." in name) and layer not in formats:
            raise CheckpointError(
                f"{layer or 'The checkpoint'} is quantised in an unknown format "
                f"({name}): take the original weights, and quantise them with `mmada-parallel "
                "convert`."
            )
    return formats


def replace_linears(
    module: nn.Module, formats: Mapping[str, Format], make: Callable[..., nn.Module]
) -> None:
    """Replace each layer in ``formats`` by ``make(inputs, outputs, format, device=…)``."""
    layers = dict(module.named_modules())
    for name, form in formats.items():
        old = layers.get(name)
        if not isinstance(old, nn.Linear) or old.bias is not None:
            raise CheckpointError(f"{name} is quantised, but this model has no such linear layer.")
        parent, _, last = name.rpartition(".")
        new = make(old.in_features, old.out_features, form, device="meta")
        layers[parent].register_module(last, new)


class FrozenFunction(torch.autograd.Function):
    """``compute(x)``, whose gradient for ``x`` is ``pull_back`` of that of its result. The backward
    holds nothing but ``pull_back``, which may make or fetch weights again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, compute: TensorMap, pull_back: TensorMap) -> Tensor:
        ctx.pull_back = pull_back
        return compute(x.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pull_back(gradients[0]), None, None


class WeightOnlyLinear(nn.Module):
    """A linear layer without bias whose weight is stored quantised and dequantised on use. It
    computes in its input's dtype; converting the module to another dtype leaves what it stores.
    ``as_int8``: inputs are rounded to int8, too, where the device multiplies those."""

    as_int8 = False
    weight: Tensor
    weight_scale: Tensor
    weight_scale_2: Tensor

    def __init__(self, inputs: int, outputs: int, form: Format, *, device: Any = None):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.stored = form.parts(inputs, outputs)
        for name, (dtype, shape) in self.stored.items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device=device))

    @classmethod
    def of(cls, weight: Tensor, form: Format) -> WeightOnlyLinear:
        """A layer that holds ``weight`` (outputs, inputs) quantised, on its device."""
        outputs, inputs = weight.shape
        layer = cls(inputs, outputs, form, device=weight.device)
        layer.load_state_dict(parts_of(weight, form))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """(…, outputs) of ``x`` (…, inputs), in its dtype. The backward dequantises again."""
        if x.requires_grad and torch.is_grad_enabled():
            return FrozenFunction.apply(x, self._product, self._pull_back)
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        return self.product_with(self.weight, x)

    def product_with(self, weight: Tensor, x: Tensor) -> Tensor:
        """(…, outputs) of ``x``. ``weight``: what is stored, on the device of ``x``."""
        if self.as_int8 and int8.can_multiply(x, weight):
            return int8.multiply(x, weight, self.weight_scale)
        return F.linear(x, self.dequantised(x.dtype, weight))

    def _pull_back(self, gradient: Tensor) -> Tensor:
        return gradient @ self.dequantised(gradient.dtype)

    def dequantised(self, dtype: torch.dtype, weight: Tensor | None = None) -> Tensor:
        """The weight (outputs, inputs) in ``dtype``, a new tensor. ``weight``: what is stored, if a
        host has brought it elsewhere."""
        weight = self.weight if weight is None else weight
        if "weight_scale_2" in self.stored:
            scales = (self.weight_scale.to(weight.device), self.weight_scale_2.to(weight.device))
            return fp4.unpack(weight, *scales, dtype)
        if weight.dtype.is_floating_point:  # no kernel multiplies float8 with another dtype
            weight = weight.to(dtype)
        return weight * self.weight_scale.to(weight.device, dtype)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.pop(prefix + _MARKER[1:], None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for name in self.stored:
            stored = getattr(self, name)
            raw = fn(
                stored.view(_RAW[stored.element_size()])
            )  # which has no float dtype to convert
            self._buffers[name] = raw.view(stored.dtype)
        return self

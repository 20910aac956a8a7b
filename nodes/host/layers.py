"""Layers that ComfyUI streams and offloads, for our modules to be built of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch

from ...mmp_core.model.formats import Format
from ...mmp_core.model.quantised import WeightOnlyLinear
from ...mmp_core.model.transformer import Attention, RMSNorm, sdpa_attention
from . import core
from .page import interruptible

_QUERIES = 1024
"""That a CPU computes at a time; of 768 and more PyTorch rounds each as it does all at once."""


def operations(dtype: torch.dtype, device: torch.device) -> type:
    """ComfyUI's layers, but for the norm, whose rounding decides which tokens are unmasked, and for
    quantised ones, which it would compute with otherwise in other versions."""

    class Operations(core.layers(dtype, device)):
        RMSNorm = StreamedRMSNorm
        QuantisedLinear = StreamedQuantisedLinear

        @staticmethod
        def weight_of(layer: torch.nn.Module, like: torch.Tensor):
            return weight_of(layer, like)

    return Operations


@contextmanager
def weight_of(layer: torch.nn.Module, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """``TorchOperations.weight_of`` that brings a weight to the device of ``like``."""
    if isinstance(layer, WeightOnlyLinear):
        with core.brought(layer, layer.weight.dtype, like.device) as weight:
            yield layer.dequantised(like.dtype, weight)
    else:
        with core.brought(layer, like.dtype, like.device) as weight:
            yield weight


class StreamedRMSNorm(RMSNorm, core.Streamed):
    """A norm whose weight is streamed. ComfyUI leaves a layer without ``comfy_cast_weights`` where
    it is if it does not fit, so that its input would be on another device."""

    bias = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.comfy_cast_weights or self.weight_function):
            return super().forward(x)
        with weight_of(self, x) as weight:
            return self.with_gain(x, weight)


class StreamedQuantisedLinear(WeightOnlyLinear, core.Streamed):
    """A quantised layer that travels as it is stored, and is dequantised where it is used."""

    bias = None

    def __init__(self, inputs: int, outputs: int, form: Format, *, device: Any = None):
        super().__init__(inputs, outputs, form, device=device)
        weight = self.weight
        del self.weight  # a buffer, which ComfyUI does not stream
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with core.brought(self, self.weight.dtype, x.device) as weight:
            return self.product_with(weight, x)

    def product_with(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self.as_int8 and not comfy.model_management.is_device_cpu(x.device):
            product = core.int8_product(x, weight, self.weight_scale.to(weight.device))
            if product is not None:
                return product
        return super().product_with(weight, x)

    def dequantised(self, dtype: torch.dtype, weight: torch.Tensor | None = None) -> torch.Tensor:
        weight = self.weight if weight is None else weight
        if weight.dtype.is_floating_point:
            made = core.dequantised_fp8(weight, self.weight_scale.to(weight.device), dtype)
            if made is not None:
                return made
        return super().dequantised(dtype, weight)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True):
        with torch.inference_mode(False):  # as when it was made
            return torch.nn.Module._apply(self, fn, recurse)


def _attention_in_parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    parts = interruptible(q.split(_QUERIES, 2))
    return torch.cat([sdpa_attention(part, k, v) for part in parts], 1)


def attention(device: torch.device) -> Attention:
    """ComfyUI's attention; on a CPU PyTorch's, which is faster there, in parts between which a run
    may be interrupted: one layer of a large canvas takes many seconds."""
    attend = core.fused_attention()
    if comfy.model_management.is_device_cpu(device):
        return _attention_in_parts
    if attend is None:
        return sdpa_attention

    def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, q.shape[1], skip_reshape=True, low_precision_attention=False)

    return attended

"""Layers that ComfyUI streams and offloads, for our modules to be built of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.ops
import comfy.quant_ops
import torch
from comfy.ldm.modules.attention import optimized_attention

from ...mmp_core.model.formats import Format
from ...mmp_core.model.transformer import Attention, RMSNorm, sdpa_attention


def operations(dtype: torch.dtype, device: torch.device) -> type:
    """ComfyUI's layers, but for the norm: its rounding decides which tokens are unmasked."""
    picked = comfy.ops.pick_operations(dtype, dtype, load_device=device)
    quantised = _quantised_linear(dtype)

    class Operations(picked):
        RMSNorm = StreamedRMSNorm
        QuantisedLinear = quantised

        @staticmethod
        def weight_of(layer: torch.nn.Module, like: torch.Tensor):
            return weight_of(layer, like)

    return Operations


@contextmanager
def weight_of(layer: torch.nn.Module, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """``TorchOperations.weight_of`` that brings a weight to the device of ``like``."""
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    try:
        quantised = isinstance(weight, comfy.quant_ops.QuantizedTensor)
        yield weight.dequantize() if quantised else weight
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


class StreamedRMSNorm(RMSNorm, comfy.ops.CastWeightBiasOp):
    """A norm whose weight is streamed. ComfyUI leaves a layer without ``comfy_cast_weights`` where
    it is if it does not fit, so that its input would be on another device."""

    bias = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.comfy_cast_weights or self.weight_function):
            return super().forward(x)
        with weight_of(self, x) as weight:
            return self.with_gain(x, weight)


def _quantised_linear(dtype: torch.dtype) -> type:
    """ComfyUI's quantised layer, which computes in ``dtype``; its inputs stay unquantised."""
    mixed = comfy.ops.mixed_precision_ops({"mixed_ops": True}, dtype, full_precision_mm=True)

    class QuantisedLinear(mixed.Linear):
        def __init__(self, inputs: int, outputs: int, form: Format, *, device: torch.device | str):
            super().__init__(inputs, outputs, bias=False)
            weight = torch.empty(outputs, inputs, dtype=form.storage, device=device)
            self.weight = torch.nn.Parameter(weight, requires_grad=False)

        def _forward(self, input, weight, bias):
            if isinstance(weight, comfy.quant_ops.QuantizedTensor):
                weight = weight.dequantize()  # else kernels for int8 quantise the input, too
            return super()._forward(input, weight, bias)

        def _apply(self, fn, recurse=True):
            with torch.inference_mode(False):  # as when it was made
                return super()._apply(fn, recurse)

    return QuantisedLinear


def attention(device: torch.device) -> Attention:
    """ComfyUI's attention; on a CPU PyTorch's, which is faster there."""
    if comfy.model_management.is_device_cpu(device):
        return sdpa_attention

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return optimized_attention(
            q, k, v, q.shape[1], skip_reshape=True, low_precision_attention=False
        )

    return attend

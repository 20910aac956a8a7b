"""Frozen weights that stay in host memory: each layer comes to the GPU for its forward and again
for its backward, so that a GPU needs room for one layer, not for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...mmp_core.model.lora import adaptable_layers
from ...mmp_core.model.quantised import FrozenFunction, WeightOnlyLinear
from ...mmp_core.model.transformer import MaskedDiffusionTransformer


def offload(transformer: MaskedDiffusionTransformer, device: torch.device | str) -> None:
    """Compute on ``device`` with the linear layers of the blocks left where they are. All else of
    ``transformer`` goes to ``device``. The layers may be quantised; they get no gradients."""
    device, layers = torch.device(device), list(adaptable_layers(transformer).values())
    transformer.requires_grad_(False)
    for module in transformer.modules():
        for table, name, tensor in _stored(module):
            if module not in layers:
                table[name] = _like(tensor, tensor.to(device))
            elif device.type == "cuda":
                table[name] = _like(tensor, tensor.detach().pin_memory())
    for layer in layers:
        layer.forward = partial(_streamed, layer, device)


def streamed_bytes(transformer: MaskedDiffusionTransformer) -> int:
    """What such a layer takes on the device at most, while the next one comes."""
    layers = adaptable_layers(transformer).values()
    return 2 * max(sum(tensor.nbytes for *_, tensor in _stored(layer)) for layer in layers)


def _streamed(layer: nn.Module, device: torch.device, x: Tensor) -> Tensor:
    def product(x: Tensor) -> Tensor:
        with _brought(layer, device):
            return type(layer).forward(layer, x)

    def pull_back(gradient: Tensor) -> Tensor:
        with _brought(layer, device):
            if isinstance(layer, WeightOnlyLinear):
                return gradient @ layer.dequantised(gradient.dtype)
            return gradient @ cast(Tensor, layer.weight)

    if x.requires_grad and torch.is_grad_enabled():
        return FrozenFunction.apply(x, product, pull_back)
    return product(x)


@contextmanager
def _brought(layer: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the tensors of ``layer`` are on ``device``."""
    stored = list(_stored(layer))
    try:
        for table, name, tensor in stored:
            table[name] = _like(tensor, copied(tensor.detach(), device))
        yield
    finally:
        for table, name, tensor in stored:
            table[name] = tensor


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _stored(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for table in (module._parameters, module._buffers):
        for name, tensor in list(table.items()):
            if tensor is not None:
                yield table, name, tensor


def _like(old: Tensor, new: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new.detach(), requires_grad=False)
    return new

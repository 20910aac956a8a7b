"""A hosted model while adapters are trained on it: its memory, and gradients through its layers.

ComfyUI may move a weight, or overwrite the buffer that it was streamed through, between forward
and backward, and weights that were moved while a node ran cannot be kept for a backward at all. So
frozen layers keep none of theirs: the backward asks for them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...mmp_core import InputError
from ...mmp_core.files import readable_size
from ...mmp_core.model.quantised import FrozenFunction
from ...mmp_core.model.transformer import MaskedDiffusionTransformer, sdpa_attention
from .layers import StreamedRMSNorm, weight_of
from .models import HostedModel, free_bytes

Interrupted = comfy.model_management.InterruptProcessingException


@contextmanager
def trainable(hosted: HostedModel) -> Iterator[None]:
    """Inside, gradients flow through ``hosted``, which computes as otherwise, and may be taken
    though nodes run in inference mode. Afterwards what training held is given back."""
    transformer = hosted.model.transformer
    blocks = list(transformer.layers["blocks"])
    attention = [block.attention for block in blocks]
    modules = [transformer, *(adapter.patcher.model for adapter in hosted.adapters)]
    layers = [layer for module in modules for layer in module.modules()]
    bypassed = {layer: make(layer) for layer in layers if (make := _maker(layer))}
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for layer, forward in bypassed.items():
                layer.forward = forward
            transformer.logits = _logits(transformer)
            for block in blocks:
                block.attention = sdpa_attention  # a host's own may have no backward
            yield
        finally:
            for layer in bypassed:
                del layer.forward
            del transformer.logits
            for block, before in zip(blocks, attention, strict=True):
                block.attention = before
            comfy.model_management.soft_empty_cache()


def _maker(layer: nn.Module) -> Callable[[nn.Module], Callable[[Tensor], Tensor]] | None:
    if isinstance(layer, StreamedRMSNorm):
        return _norm
    return _linear if hasattr(layer, "in_features") else None


def _linear(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    compute = layer.forward

    def pull_back(gradient: Tensor) -> Tensor:
        with weight_of(layer, gradient) as weight:
            return gradient @ weight

    return lambda x: FrozenFunction.apply(x, compute, pull_back)


def _norm(layer: StreamedRMSNorm) -> Callable[[Tensor], Tensor]:
    def scaled(x: Tensor) -> Tensor:
        with weight_of(layer, x) as weight:
            return weight * x

    def forward(x: Tensor) -> Tensor:
        return FrozenFunction.apply(
            F.rms_norm(x, layer.normalized_shape, None, layer.eps), scaled, scaled
        )

    return forward


def _logits(transformer: MaskedDiffusionTransformer) -> Callable[..., Tensor]:
    compute, scale = transformer.logits, transformer.logit_scale

    def logits(hidden: Tensor, choices: slice = slice(None)) -> Tensor:
        def pull_back(gradient: Tensor) -> Tensor:
            with transformer.head(gradient, choices) as weight:
                found = gradient @ weight
            return found if scale is None else found * scale

        return FrozenFunction.apply(hidden, partial(compute, choices=choices), pull_back)

    return logits


class TrainingRoom:
    """The memory of a hosted model's device, for training."""

    def __init__(self, hosted: HostedModel):
        self.device = hosted.patcher.load_device
        self.patchers = [*hosted.transformer_patchers, hosted.image_patcher]
        self.weights = sum(patcher.model_size() for patcher in self.patchers)

    @property
    def free(self) -> float:
        """What there is for training and weights; on a CPU for training alone."""
        return free_bytes(self.device)

    @property
    def beside(self) -> float:
        """What is free once all weights are on the device."""
        on_cpu = comfy.model_management.is_device_cpu(self.device)
        return self.free if on_cpu else self.free - self.weights

    def sequences(self, bytes_of: Callable[[int], int], most: int, asked: int) -> int:
        """How many sequences to train on at once: ``asked``, or, if that is 0, as many of ``most``,
        halved until they fit beside the weights; where not even one does, in half of the memory,
        through which the weights are then streamed.

        ``bytes_of``: what so many need. Raises ``InputError`` where they do not fit at all.
        """
        room = self.beside if self.beside >= bytes_of(asked or 1) else self.free / 2
        chosen = asked or most
        while not asked and chosen > 1 and bytes_of(chosen) > room:
            chosen //= 2
        if bytes_of(chosen) > self.free:
            raise InputError(
                f"Training on {chosen} sequence(s) at once needs about "
                f"{readable_size(bytes_of(chosen))} beside the model's weights "
                f"({readable_size(self.weights)}), and {readable_size(max(0, self.free))} are "
                f"free on {self.device}: choose a lower micro_batch, rank or text_length, smaller "
                "pictures or gradient_checkpointing, or close other programs."
            )
        return chosen

    def prepare(self, memory: int) -> str:
        """Load the model so that ``memory`` bytes stay free. What there is to say about it."""
        streamed = max(0.0, memory - self.beside)
        comfy.model_management.load_models_gpu(self.patchers, memory_required=memory)
        told = f"about {readable_size(memory)} beside {readable_size(self.weights)} of weights"
        if comfy.model_management.is_device_cpu(self.device) or not streamed:
            return told
        return f"{told}, of which {readable_size(streamed)} are streamed, which takes time"

    def in_use(self) -> str:
        """Of the device, by everyone."""
        total = comfy.model_management.get_total_memory(self.device)
        used = total - comfy.model_management.get_free_memory(self.device)
        return f"{readable_size(used)} of {readable_size(total)} memory in use"

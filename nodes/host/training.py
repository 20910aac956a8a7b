"""A hosted model while adapters are trained on it: its memory, and gradients through its layers.

ComfyUI may move a weight, or overwrite the buffer that it was streamed through, between forward
and backward, and weights that were moved while a node ran cannot be kept for a backward at all. So
frozen layers keep none of theirs: the backward asks for them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...mmp_core import InputError
from ...mmp_core.files import readable_size
from ...mmp_core.model.quantised import FrozenFunction
from ...mmp_core.model.transformer import MaskedDiffusionTransformer, sdpa_attention
from . import core
from .clip import HostedClip
from .layers import StreamedRMSNorm, weight_of
from .models import HostedModel, free_bytes, memory_cost

Interrupted = comfy.model_management.InterruptProcessingException


@contextmanager
def trainable(hosted: HostedModel) -> Iterator[None]:
    """Inside, gradients flow through ``hosted``, which computes as otherwise, and may be taken
    though nodes run in inference mode. Afterwards what training held is given back."""
    transformer = hosted.model.transformer
    blocks: list[Any] = list(transformer.blocks)
    attention = [block.attention for block in blocks]
    modules = [transformer, *(adapter.patcher.model for adapter in hosted.adapters)]
    layers = [layer for module in modules for layer in module.modules()]
    frozen = {layer: forward for layer in layers if (forward := _frozen(layer))}
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for layer, forward in frozen.items():
                layer.forward = forward
            transformer.logits = _logits(transformer)
            for block in blocks:
                block.attention = sdpa_attention  # a host's own may have no backward
            yield
        finally:
            for layer in frozen:
                del layer.forward
            del transformer.logits
            for block, before in zip(blocks, attention, strict=True):
                block.attention = before
            comfy.model_management.soft_empty_cache()


def _frozen(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A forward of a layer with weights that keeps none of them for the backward."""
    if isinstance(layer, StreamedRMSNorm):
        return _norm(layer)
    return _linear(layer) if hasattr(layer, "in_features") else None


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
                pulled = gradient @ weight
            return pulled if scale is None else pulled * scale

        return FrozenFunction.apply(hidden, partial(compute, choices=choices), pull_back)

    return logits


class TrainingMemory:
    """The memory of a hosted model's device, for training. ``clips``: what scores beside it."""

    def __init__(self, hosted: HostedModel, clips: Sequence[HostedClip] = ()):
        self.device, self.clips = hosted.patcher.load_device, clips
        self.patchers = [*hosted.transformer_patchers, hosted.image_patcher]
        self.patchers += [clip.patcher for clip in clips]
        self.weights = sum(core.loaded_size(patcher) for patcher in self.patchers)

    @property
    def free(self) -> float:
        """Bytes for training and weights; on a CPU, where the weights lie anyway, for training."""
        return free_bytes(self.device)

    @property
    def beside(self) -> float:
        """Bytes that are free once all weights are on the device."""
        on_cpu = comfy.model_management.is_device_cpu(self.device)
        return self.free if on_cpu else self.free - self.weights

    def sequences(self, bytes_of: Callable[[int], int], most: int, wanted: int) -> int:
        """How many sequences to train on at once: ``wanted``, or, if that is 0, ``most``, halved
        until they fit beside the weights. Where not even one fits, half of the memory is for them,
        and the weights are streamed through the other half.

        ``bytes_of``: what so many need. Raises ``InputError`` where they do not fit at all.
        """
        room = self.beside if self.beside >= bytes_of(wanted or 1) else self.free / 2
        count = wanted or most
        while not wanted and count > 1 and bytes_of(count) > room:
            count //= 2
        if bytes_of(count) > self.free:
            raise InputError(
                f"Training on {count} sequence(s) at once needs about "
                f"{readable_size(bytes_of(count))} in addition to the model's weights "
                f"({readable_size(self.weights)}), and {readable_size(max(0, self.free))} are "
                f"free on {self.device}: choose a lower micro_batch, rank or text_length, "
                "smaller pictures or gradient_checkpointing, or close other programs."
            )
        return count

    def prepare(self, needed: int) -> str:
        """Load the weights so that ``needed`` bytes stay free. A sentence about it, for the log."""
        cost = memory_cost(self.device, self.weights, needed)
        for clip in self.clips:
            clip.prepare()
        comfy.model_management.load_models_gpu(self.patchers, memory_required=needed)
        return cost

    def in_use(self) -> str:
        """Memory of the device in use, by every program."""
        total = comfy.model_management.get_total_memory(self.device)
        used = total - comfy.model_management.get_free_memory(self.device)
        return f"{readable_size(used)} of {readable_size(total)} memory in use"

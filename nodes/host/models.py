"""Checkpoints and adapters as ComfyUI's models: loaded, offloaded and unloaded by it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from ...mmp_core import CheckpointError, Model, Prompt
from ...mmp_core.checkpoint.adapters import build_adapter
from ...mmp_core.checkpoint.load import (
    EMBEDDED,
    build_model,
    check_formats,
    fitting_dtype,
    load_weights,
    multiply_as_int8,
    open_checkpoint,
    stored_dtype,
)
from ...mmp_core.checkpoint.read_ahead import read_ahead
from ...mmp_core.checkpoint.source import Source
from ...mmp_core.checkpoint.tensors import SafetensorsFiles
from ...mmp_core.errors import sentence
from ...mmp_core.files import readable_size
from ...mmp_core.image.pictures import Size
from ...mmp_core.memory import (
    MemoryEstimate,
    OutOfMemory,
    decoding_bytes,
)
from ...mmp_core.model.lora import Adapter, AttachedAdapter
from ...mmp_core.pipeline import seen_size
from ...mmp_core.variants.base import Variant
from ...mmp_core.variants.strangers import remember
from . import core
from .clip import HostedClip
from .folders import checkpoint_paths
from .layers import attention, operations
from .page import interruptible, stop_if_interrupted

INT8 = "int8"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_OF_COMMAND = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES.values()}
"""As the command calls them."""
_INJECTIONS = "mmada_parallel.adapters"
_log = logging.getLogger(__name__)


def free_bytes(device: torch.device) -> float:
    """Bytes that ComfyUI can free on ``device`` by unloading all models; on a CPU, where unloaded
    weights stay, what is free beside them."""
    free = comfy.model_management.get_free_memory(device) - core.reserved_bytes()
    on_cpu = comfy.model_management.is_device_cpu(device)
    return free if on_cpu else free + core.loaded_bytes(device)


def memory_cost(device: torch.device, weights: int, working: int, *, loading: bool = False) -> str:
    """What a run needs of the memory that there is, in a sentence or two. ``weights`` and
    ``working``: bytes. ``loading``: the weights are still to be read from disk."""
    free, total = core.memory_of(torch.device("cpu"))
    there = sentence(f"{readable_size(free)} of {readable_size(total)} free")
    needed = sentence(f"{readable_size(weights + working)} needed")
    if working:
        needed = sentence(
            f"{readable_size(weights + working)} needed ({readable_size(weights)} of it weights)"
        )
    if comfy.model_management.is_device_cpu(device):
        return sentence(f"Memory: {needed}, {there}.")
    usable, (_, total) = max(0.0, free_bytes(device)), core.memory_of(device)
    streamed = min(weights, max(0.0, weights + working - usable))
    usable_size = sentence(f"{readable_size(usable)} of {readable_size(total)} can be used")
    notes = [sentence(f"GPU: {needed}, {usable_size}.")]
    if streamed:
        size = readable_size(streamed)
        notes.append(sentence(f"{size} of the weights are streamed at each step, which is slow."))
    host = sentence(f"{readable_size(weights if loading else streamed)} needed")
    notes.append(sentence(f"Host: {host}, {there}."))
    if (weights if loading else streamed) > free:
        notes.append(sentence("The weights are read from disk again and again."))
    return " ".join(notes)


@dataclass(frozen=True)
class HostedAdapter:
    """``patcher``: of a ``model.lora.Adapter``. ``file``: where it comes from, if from one."""

    patcher: comfy.model_patcher.ModelPatcher
    strength: float
    file: Path | None = None


@dataclass(frozen=True)
class HostedModel:
    """A model whose memory is ComfyUI's to manage. Before each use, make room by
    :meth:`prepare_encoding`, :meth:`prepare_decoding` or :meth:`memory_budget`. ``command``: the
    options of the command that loads alike, without the adapters; ``None`` where none do."""

    model: Model
    patcher: comfy.model_patcher.ModelPatcher
    image_patcher: comfy.model_patcher.ModelPatcher
    adapters: tuple[HostedAdapter, ...] = ()
    command: Mapping[str, Any] | None = None

    @property
    def transformer_patchers(self) -> list[comfy.model_patcher.ModelPatcher]:
        """What to load before the transformer computes: loading puts the adapters to work."""
        return [self.patcher, *(adapter.patcher for adapter in self.adapters)]

    def is_dynamic(self) -> bool:
        """Read by ComfyUI's cache."""
        return self.patcher.is_dynamic()

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        """Read by ComfyUI's tracker of the models that a prompt uses."""
        return [*self.transformer_patchers, self.image_patcher]

    def prepare_encoding(self, sizes: Iterable[Size], task: str = "") -> None:
        """Load the image tokenizer, to encode pictures of these sizes one after the other."""
        seen = (seen_size(self.model, size, task) for size in sizes)
        self._prepare_images(max((width * height for width, height in seen), default=1))

    def prepare_decoding(self, grid: tuple[int, int], clip: HostedClip | None = None) -> None:
        """Load the image tokenizer, to decode pictures of a grid of codes one after the other, and
        beside it ``clip``, so that neither makes way for the other."""
        self._prepare_images(grid[0] * grid[1] * self.model.downsample**2, clip)

    def _prepare_images(self, pixels: int, clip: HostedClip | None = None) -> None:
        """Raises ``OutOfMemory`` where a CPU has not enough."""
        patchers, device = [self.image_patcher], self.image_patcher.load_device
        memory, free = pixels * self.model.image_tokenizer.bytes_per_pixel, free_bytes(device)
        if comfy.model_management.is_device_cpu(device) and memory > free:
            raise OutOfMemory(
                f"Too little memory: a picture of {pixels / 1e6:.1f} megapixels needs about "
                f"{readable_size(memory)}, and {readable_size(max(0, free))} are free. Use a "
                "smaller picture."
            )
        if clip is not None:
            clip.prepare()
            patchers.append(clip.patcher)
        comfy.model_management.load_models_gpu(patchers, memory_required=memory)

    def memory_budget(
        self, prompt: Prompt, *, previews: bool, tell: Callable[[str], Any] = lambda cost: None
    ) -> HostBudget:
        """For ``denoise_in_batches``. ``tell``: called with what a batch needs, before it."""
        return HostBudget(self, previews and min(prompt.initial.grid) > 0, tell)

    def picture_bytes(self, grid: tuple[int, int], *, previews: bool) -> int:
        """What a run counts for decoding a picture of it: with previews, and on a CPU, where it is
        decoded afterwards in the same memory."""
        counts = previews or comfy.model_management.is_device_cpu(self.patcher.load_device)
        return decoding_bytes(self.model.image_tokenizer, grid) if counts else 0

    @property
    def weights(self) -> int:
        """Bytes of everything that is loaded."""
        return sum(core.loaded_size(patcher) for patcher in self.get_models())


@dataclass(frozen=True)
class HostBudget:
    """The ``MemoryBudget`` of a device whose memory ComfyUI manages.

    ``previews``: whether pictures are decoded between steps. ``tell``: called with what is needed.
    """

    hosted: HostedModel
    previews: bool
    tell: Callable[[str], Any]

    @property
    def _patchers(self) -> list[comfy.model_patcher.ModelPatcher]:
        pictures = [self.hosted.image_patcher] if self.previews else []
        return [*self.hosted.transformer_patchers, *pictures]

    def samples(self, estimate: MemoryEstimate, batch: int) -> int:
        """As many as fit beside the weights; if not even one does, as many as fit in half of the
        device, while the weights are streamed through the other half. On a CPU none."""
        device = self.hosted.patcher.load_device
        free = free_bytes(device)
        if comfy.model_management.is_device_cpu(device):
            return estimate.samples_in(free, batch) if estimate.total(1) <= free else 0
        beside = free - sum(core.loaded_size(patcher) for patcher in self._patchers)
        return estimate.samples_in(beside if beside >= estimate.total(1) else free / 2, batch)

    def prepare(self, estimate: MemoryEstimate, samples: int) -> None:
        memory = estimate.total(samples)
        size = sum(core.loaded_size(patcher) for patcher in self._patchers)
        cost = memory_cost(self.hosted.patcher.load_device, size, memory)
        _log.info("MMaDA-Parallel: %d sample(s) at once. %s", samples, cost)
        self.tell(cost)
        comfy.model_management.load_models_gpu(self._patchers, memory_required=memory)


def with_adapter(
    model: HostedModel,
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    name: str,
    strength: float,
    file: Path | None = None,
) -> HostedModel:
    """``model`` with one adapter more, as ``checkpoint.adapters.read_adapter`` gave it from
    ``file``, if it comes from one.

    The weights are shared with ``model``, which stays as it is: the two take turns in being
    loaded. Raises ``InputError`` where the adapter does not fit.
    """
    devices = {
        "load_device": model.patcher.load_device,
        "offload_device": model.patcher.offload_device,
    }
    with torch.inference_mode(False):  # in which nodes run; see load
        adapter = build_adapter(
            model.model,
            {k: t.clone() if t.is_inference() else t for k, t in interruptible(state.items())},
            metadata,
            name,
            operations=comfy.ops.manual_cast,
            device=model.patcher.offload_device,
            tell=stop_if_interrupted,
        )
    hosted = HostedAdapter(core.patcher(adapter, **devices), strength, file)
    adapters = (*model.adapters, hosted)
    patcher = model.patcher.clone()
    patcher.set_injections(
        _INJECTIONS, [_injection(added.patcher.model, added.strength) for added in adapters]
    )
    return replace(model, patcher=patcher, adapters=adapters)


def _injection(adapter: Adapter, strength: float) -> core.PatcherInjection:
    """Not ComfyUI 0.33.0's bypass: where two share a layer it does not come off, and it does not
    count the memory of its adapters."""
    at_work: list[AttachedAdapter] = []

    def inject(patcher: comfy.model_patcher.ModelPatcher) -> None:
        at_work.append(adapter.attach(patcher.model, strength))

    def eject(patcher: comfy.model_patcher.ModelPatcher) -> None:
        while at_work:
            at_work.pop().remove()

    return core.PatcherInjection(inject=inject, eject=eject)


def load(
    checkpoint: str, dtype: str, image_tokenizer: str, family: Variant | None = None
) -> HostedModel:
    """Load what the loader's widgets name. ``family``: what the user says it is, which is noted
    beside the checkpoint. Raises ``CheckpointError`` with one sentence."""
    path, image_path = checkpoint_paths(checkpoint, image_tokenizer)
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    with torch.inference_mode(False):  # so that the same weights can be trained
        source = open_checkpoint(path, image_tokenizer_path=image_path, family=family)
        if family is not None and source.path.is_dir() and source.path not in EMBEDDED.values():
            remember(source.path, family)
        check_formats(source, device)
        read_ahead(source.weights, source.image_weights)
        source = _read_by_host(source)
        whole, chosen = dtype == INT8, DTYPES.get(dtype) or _fitting_dtype(source, device)
        model = build_model(
            source, operations=operations(chosen, device), attention=attention(device), dtype=chosen
        )
        if whole:
            multiply_as_int8(model.transformer, str(source.path))
        load_weights(model, source, offload_device, stop_if_interrupted)
    _check_filled(model, path)
    model.device = device
    patchers = (
        core.patcher(module, load_device=device, offload_device=offload_device)
        for module in (model.transformer, model.image_tokenizer)
    )
    command = {
        "model": path,
        "image_tokenizer": image_path,
        "family": family and family.id,
        "dtype": INT8 if whole else _OF_COMMAND.get(chosen),
    }
    hosted = HostedModel(model, *patchers, command=command)
    if not (hosted.is_dynamic() or comfy.model_management.is_device_cpu(device)):
        _copy_from_files(hosted)
    return hosted


def _copy_from_files(hosted: HostedModel) -> None:
    """Give each weight memory of its own: two that share a page of a mapped file cannot be pinned,
    and what is not pinned streams slowly. DynamicVRAM reads from the file, as it should."""
    with torch.inference_mode(False):
        for patcher in hosted.get_models():
            for weight in interruptible(patcher.model.parameters()):
                weight.data = weight.data.clone()


def _read_by_host(source: Source) -> Source:
    """``source`` read by ComfyUI, which streams weights from disk if it remembers their place."""

    @cache
    def reader(file: Path) -> dict[str, torch.Tensor]:
        return comfy.utils.load_torch_file(str(file), safe_load=True)

    def read(weights):
        return weights.read_by(reader) if isinstance(weights, SafetensorsFiles) else weights

    return replace(source, weights=read(source.weights), image_weights=read(source.image_weights))


def _fitting_dtype(source: Source, device: torch.device) -> torch.dtype:
    """Half precision on a GPU that computes in it; on a CPU float32 unless the model is large."""
    if not comfy.model_management.is_device_cpu(device):
        parameters = sum(tensor.numel() for tensor in source.weights.values())
        return core.fast_dtype(device, parameters, stored_dtype(source))
    wide = core.asked_dtype() == torch.float32
    return torch.float32 if wide else fitting_dtype(source, device)


def _check_filled(model: Model, path: Path) -> None:
    """Refuse missing weights: ``load_weights`` cannot, since under DynamicVRAM layers have no
    weights before they are loaded."""
    for module in (model.transformer, model.image_tokenizer):
        for name, layer in module.named_modules():
            if getattr(layer, "weight", layer) is None:
                raise CheckpointError(f"{path} lacks {name}.weight: it is incomplete.")

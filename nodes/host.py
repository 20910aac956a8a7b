"""What the pack needs of ComfyUI beyond the node API: memory, progress, previews, interruption."""

from __future__ import annotations

import html
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import comfy.cli_args
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.attention import optimized_attention
from PIL import Image
from server import PromptServer

from ..mmp_core import CheckpointError, Model, Prompt, SamplerSettings
from ..mmp_core.checkpoint import build_model, load_weights, open_checkpoint
from ..mmp_core.memory import PICTURE_BYTES_PER_PIXEL, Need, denoising_need, readable
from ..mmp_core.quantised import Format, formats_of
from ..mmp_core.source import Source
from ..mmp_core.tensor_files import SafetensorsFiles
from ..mmp_core.transformer import Attention, RMSNorm, sdpa_attention
from .folders import FOLDER, checkpoint_paths

STEP_EVENT = "mmada_parallel.step"
"""What the page is sent while a run denoises; web/denoise_viewer.js listens to it."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_log = logging.getLogger(__name__)
_SMALL = 10**9
_CLIP_ACTIVATION_BYTES = 2**30
_TEXT_INTERVAL = 0.1
_PICTURE_INTERVAL = 0.5
_PREVIEW_SIZE = 512


def clip_device(folder: Path) -> torch.device:
    """ComfyUI's device, with room made for the CLIP in ``folder``, in float32, and its work."""
    device = comfy.model_management.get_torch_device()
    stored = max(file.stat().st_size for file in folder.iterdir())
    comfy.model_management.free_memory(2 * stored + _CLIP_ACTIVATION_BYTES, device)
    return device


def metadata_wanted() -> bool:
    return not comfy.cli_args.args.disable_metadata


@dataclass(frozen=True)
class HostedAdapter:
    """``patcher``: of an :class:`~.mmp_core.lora.Adapter`, whose memory is ComfyUI's, too."""

    patcher: comfy.model_patcher.ModelPatcher
    strength: float


@dataclass(frozen=True)
class HostedModel:
    """A model whose memory is ComfyUI's to manage. Call a ``prepare`` method before each use."""

    model: Model
    patcher: comfy.model_patcher.ModelPatcher
    image_patcher: comfy.model_patcher.ModelPatcher
    adapters: tuple[HostedAdapter, ...] = ()

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

    def prepare_images(self, pixels: int) -> None:
        """Load the image tokenizer, for pictures of ``pixels`` pixels."""
        comfy.model_management.load_models_gpu(
            [self.image_patcher], memory_required=pixels * PICTURE_BYTES_PER_PIXEL
        )

    def prepare_denoising(
        self, prompt: Prompt, *, previews: bool, settings: SamplerSettings | None = None
    ) -> None:
        """Load the transformer, and for ``previews`` the image tokenizer."""
        need = denoising_need(self.model, prompt, settings or SamplerSettings())
        self.room(prompt, previews=previews).prepare(need, prompt.batch)

    def room(self, prompt: Prompt, *, previews: bool) -> HostRoom:
        """For ``denoise_in_parts``."""
        (height, width), side = prompt.initial.grid, self.model.downsample
        return HostRoom(self, height * width * side**2 if previews else 0)


@dataclass(frozen=True)
class HostRoom:
    """A device's memory as ComfyUI shares it out; implements ``Room``.

    ``pixels``: of a preview, 0 for none.
    """

    hosted: HostedModel
    pixels: int

    @property
    def _patchers(self) -> list[comfy.model_patcher.ModelPatcher]:
        pictures = [self.hosted.image_patcher] if self.pixels else []
        return [*self.hosted.transformer_patchers, *pictures]

    def samples(self, need: Need, batch: int) -> int:
        """So many that the weights can stay on the device; if even one sample is too much for that,
        as many as fit in half of it, since all share the weights that are streamed."""
        management, device = comfy.model_management, self.hosted.patcher.load_device
        free = management.get_free_memory(device) - management.extra_reserved_memory()
        if management.is_device_cpu(device):
            return need.samples_in(free, batch)
        free += sum(
            entry.model_loaded_memory()
            for entry in management.current_loaded_models
            if entry.device == device
        )
        beside = free - sum(patcher.model_size() for patcher in self._patchers)
        return need.samples_in(beside if beside >= need.of(1) else free / 2, batch)

    def prepare(self, need: Need, samples: int) -> None:
        kept = need.fixed + samples * need.kept
        picture = self.pixels * PICTURE_BYTES_PER_PIXEL
        memory = max(need.of(samples), kept + picture)
        size = sum(patcher.model_size() for patcher in self._patchers)
        _log.info(
            "MMaDA-Parallel: %d sample(s) at once need about %s beside %s of weights.",
            samples, readable(memory), readable(size),
        )  # fmt: skip
        comfy.model_management.load_models_gpu(self._patchers, memory_required=memory)


def load(checkpoint: str, dtype: str, image_tokenizer: str) -> HostedModel:
    """Load what the loader's widgets name. Raises ``CheckpointError`` with one sentence."""
    path, image_path = checkpoint_paths(checkpoint, image_tokenizer)
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    with torch.inference_mode(False):  # so that the same weights can be trained
        source = open_checkpoint(path, image_tokenizer_path=image_path)
        _check_formats(source)
        source = _read_by_host(source)
        chosen = DTYPES.get(dtype) or _fitting_dtype(source, device)
        model = build_model(
            source,
            operations=_operations(chosen, device),
            attention=_attention(device),
            dtype=chosen,
        )
        load_weights(model, source, offload_device)
    _check_filled(model, path)
    model.device = device
    patchers = (
        comfy.model_patcher.CoreModelPatcher(
            module, load_device=device, offload_device=offload_device
        )
        for module in (model.transformer, model.image_tokenizer)
    )
    return HostedModel(model, *patchers)


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
    stored = source.weights["model.transformer.ln_f.weight"].dtype
    parameters = sum(tensor.numel() for tensor in source.weights.values())
    if comfy.model_management.is_device_cpu(device):
        return torch.float32 if parameters < _SMALL else stored
    return comfy.model_management.unet_dtype(
        device=device,
        model_params=parameters,
        supported_dtypes=[torch.bfloat16, torch.float16, torch.float32],
        weight_dtype=stored,
    )


def _check_formats(source: Source) -> None:
    names = {form.name for form in formats_of(source.weights).values()}
    if unknown := sorted(names - comfy.quant_ops.QUANT_ALGOS.keys()):
        raise CheckpointError(
            f"{source.path} is quantised as {', '.join(unknown)}, which this version of ComfyUI "
            "does not know: update ComfyUI, or convert the checkpoint with --quantize fp8."
        )


def _operations(dtype: torch.dtype, device: torch.device) -> type:
    """ComfyUI's layers, but for the norm, whose rounding decides which tokens are chosen."""
    picked = comfy.ops.pick_operations(dtype, dtype, load_device=device)
    own = {
        "RMSNorm": StreamedRMSNorm,
        "QuantisedLinear": _quantised_linear(dtype),
        "weight_of": staticmethod(weight_of),
    }
    return type("Operations", (picked,), own)


@contextmanager
def weight_of(layer: torch.nn.Module, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """As ``TorchOperations.weight_of``; a weight that is not on the device is brought there."""
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    try:
        quantised = isinstance(weight, comfy.quant_ops.QuantizedTensor)
        yield weight.dequantize() if quantised else weight
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


class StreamedRMSNorm(RMSNorm, comfy.ops.CastWeightBiasOp):
    """Without ``comfy_cast_weights`` a layer for which there is no room is left where it is, and
    then meets an input on another device."""

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


def _attention(device: torch.device) -> Attention:
    """ComfyUI's attention; on a CPU, where its own is slower, torch's."""
    if comfy.model_management.is_device_cpu(device):
        return sdpa_attention

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return optimized_attention(
            q, k, v, q.shape[1], skip_reshape=True, low_precision_attention=False
        )

    return attention


def _check_filled(model: Model, path: Path) -> None:
    """Under DynamicVRAM layers have no weights before loading, so ``load_weights`` misses none."""
    for module in (model.transformer, model.image_tokenizer):
        for name, layer in module.named_modules():
            if getattr(layer, "weight", layer) is None:
                raise CheckpointError(f"{path} lacks {name}.weight: it is incomplete.")


def to_intermediate(pixels: torch.Tensor) -> torch.Tensor:
    """``pixels`` where ComfyUI keeps what travels between nodes."""
    return pixels.to(comfy.model_management.intermediate_device())


def stop_if_interrupted() -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def save_temporary(picture: Image.Image) -> dict[str, str]:
    """Save ``picture`` until ComfyUI ends. What its ``/view`` needs to serve it."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{FOLDER}_{uuid.uuid4().hex}.jpg"
    picture.save(folder / name, quality=85)
    return {"filename": name, "subfolder": "", "type": "temp"}


class Progress:
    """The page's view of one running node: bar, picture and text.

    A caller makes a picture or a text only when it is due, since making one costs time.
    """

    def __init__(self, node_id: str):
        self.node_id = node_id
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._text_at = self._picture_at = 0.0

    @property
    def text_due(self) -> bool:
        return time.monotonic() >= self._text_at

    @property
    def picture_due(self) -> bool:
        return time.monotonic() >= self._picture_at

    def show(self, done: int, total: int, picture: Image.Image | None = None) -> None:
        preview = None
        if picture is not None:
            preview = ("JPEG", picture, min(_PREVIEW_SIZE, max(picture.size)))
            self._picture_at = time.monotonic() + _PICTURE_INTERVAL
        self._bar.update_absolute(done, total, preview)

    def show_text(self, text: str) -> None:
        """The whole text so far, on the node."""
        self._text_at = time.monotonic() + _TEXT_INTERVAL
        if server := _server():
            server.send_progress_text(for_page(text), self.node_id, server.client_id)

    def show_words(self, done: int, total: int, words: Sequence[tuple[str, str]]) -> None:
        """The whole text so far, in our own viewer: words and their states."""
        if server := _server():
            event = {"node": self.node_id, "step": done, "total": total, "words": words}
            server.send_sync(STEP_EVENT, event, server.client_id)


def _server() -> PromptServer | None:
    return getattr(PromptServer, "instance", None)


def for_page(text: str) -> str:
    """``text`` as the page's live text shows it literally: the page takes it for HTML."""
    return html.escape(text).replace("\n", "<br>").replace("  ", " &nbsp;")

"""What the pack needs of ComfyUI beyond the node API: folders, memory, progress, interruption."""

from __future__ import annotations

import html
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.attention import optimized_attention
from PIL import Image
from server import PromptServer

from ..mmp_core import CheckpointError, Model, Prompt
from ..mmp_core.checkpoint import (
    DEMO,
    SafetensorsFiles,
    Source,
    build_model,
    load_weights,
    open_checkpoint,
)
from ..mmp_core.transformer import Attention, RMSNorm, sdpa_attention

FOLDER = "mmada_parallel"
"""Name of the model folder: ``models/mmada_parallel``, or what extra_model_paths.yaml says."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_DEMO_NAME = "demo"
_BESIDE = "auto"
_IMAGE_TOKENIZER_FOLDERS = ("magvitv2", "vqvae")
_SMALL = 10**9
_TOKENIZER_BYTES_PER_PIXEL = 2048
_TEXT_INTERVAL = 0.1
_PICTURE_INTERVAL = 0.5
_PREVIEW_SIZE = 512


def _register_folder() -> None:
    default = os.path.join(folder_paths.models_dir, FOLDER)
    folder_paths.add_model_folder_path(FOLDER, default, is_default=True)
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


_register_folder()


def checkpoint_names() -> list[str]:
    """``demo``, then folders with a config.json and .safetensors files of the model folder."""
    return [_DEMO_NAME, *_checkpoints()]


def image_tokenizer_names() -> list[str]:
    """``auto``, then what an image tokenizer may be stored as in the model folder."""
    return [_BESIDE, *_image_tokenizers()]


def _checkpoints() -> dict[str, Path]:
    return {
        name: path
        for name, path in _entries().items()
        if path.suffix == ".safetensors" or _is_checkpoint(path)
    }


def _image_tokenizers() -> dict[str, Path]:
    return {
        name: path
        for name, path in _entries().items()
        if path.suffix in (".safetensors", ".bin") or path.name in _IMAGE_TOKENIZER_FOLDERS
    }


def _is_checkpoint(path: Path) -> bool:
    return path.name not in _IMAGE_TOKENIZER_FOLDERS and (path / "config.json").is_file()


def _entries() -> dict[str, Path]:
    """Files and folders by name, two levels deep; what lies in a checkpoint's folder is its own."""
    found: dict[str, Path] = {}

    def visit(folder: Path, root: Path, depth: int) -> None:
        try:
            inside = sorted(folder.iterdir())
        except OSError:  # not readable: not offered
            return
        for path in inside:
            found.setdefault(path.relative_to(root).as_posix(), path)
            if depth and path.is_dir() and not (path / "config.json").is_file():
                visit(path, root, depth - 1)

    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        if root.is_dir():
            visit(root, root, 1)
    return found


def _find(name: str, offered: dict[str, Path]) -> Path:
    if name not in offered:
        raise CheckpointError(
            f"{name!r} is not in {folder_paths.get_folder_paths(FOLDER)[0]}: put it there, then "
            "refresh ComfyUI's page."
        )
    return offered[name]


def _paths(checkpoint: str, image_tokenizer: str) -> tuple[Path, Path | None]:
    path = DEMO if checkpoint == _DEMO_NAME else _find(checkpoint, _checkpoints())
    if image_tokenizer == _BESIDE:
        return path, None
    return path, _find(image_tokenizer, _image_tokenizers())


def fingerprint(checkpoint: str, image_tokenizer: str) -> list[tuple[str, int, int]]:
    """Name, size and time of every file that :func:`load` may read."""
    try:
        paths = [path for path in _paths(checkpoint, image_tokenizer) if path]
    except CheckpointError:
        return []
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(files)]


@dataclass(frozen=True)
class HostedModel:
    """A model whose memory is ComfyUI's to manage. Call a ``prepare`` method before each use."""

    model: Model
    patcher: comfy.model_patcher.ModelPatcher
    image_patcher: comfy.model_patcher.ModelPatcher

    def is_dynamic(self) -> bool:
        """Read by ComfyUI's cache."""
        return self.patcher.is_dynamic()

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        """Read by ComfyUI's tracker of the models that a prompt uses."""
        return [self.patcher, self.image_patcher]

    def prepare_images(self, pixels: int) -> None:
        """Load the image tokenizer, for pictures of ``pixels`` pixels."""
        comfy.model_management.load_models_gpu(
            [self.image_patcher], memory_required=pixels * _TOKENIZER_BYTES_PER_PIXEL
        )

    def prepare_denoising(self, prompt: Prompt, *, previews: bool) -> None:
        """Load the transformer, and for ``previews`` the image tokenizer."""
        patchers, memory = [self.patcher], _denoising_bytes(self.model, prompt)
        if previews:
            height, width = prompt.initial.grid
            patchers.append(self.image_patcher)
            memory += height * width * self.model.downsample**2 * _TOKENIZER_BYTES_PER_PIXEL
        comfy.model_management.load_models_gpu(patchers, memory_required=memory)


def _denoising_bytes(model: Model, prompt: Prompt) -> int:
    """Activations of one forward and, larger for a big vocabulary, the logits of a step."""
    config = model.transformer.config
    itemsize = model.transformer.layers["ln_f"].weight.element_size()
    length = model.layout.sequence(prompt, prompt.initial).ids.shape[1]
    activations = length * (8 * config.d_model + 4 * config.mlp_hidden_size) * itemsize
    (_, text_length), (_, height, width) = prompt.initial.text.shape, prompt.initial.image.shape

    def logits(positions: int, choices: int) -> int:
        return positions * (config.embedding_size * itemsize + 6 * choices * 4)

    text = logits(text_length, len(model.layout.text_choices))
    image = logits(height * width, model.layout.codebook_size)
    return prompt.batch * (activations + max(text, image))


def load(checkpoint: str, dtype: str, image_tokenizer: str) -> HostedModel:
    """Load what the loader's widgets name. Raises ``CheckpointError`` with one sentence."""
    path, image_path = _paths(checkpoint, image_tokenizer)
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    with torch.inference_mode(False):  # so that the same weights can be trained
        source = _read_by_host(open_checkpoint(path, image_tokenizer_path=image_path))
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

    def read(weights):
        if not isinstance(weights, SafetensorsFiles):
            return weights
        parts = (comfy.utils.load_torch_file(str(file), safe_load=True) for file in weights.files)
        return {name: tensor for part in parts for name, tensor in part.items()}

    return replace(
        source, weights=read(source.weights), image_weights=read(source.image_weights)
    )


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


def _operations(dtype: torch.dtype, device: torch.device) -> type:
    """ComfyUI's layers, but for the norm, whose rounding decides which tokens are chosen."""
    picked = comfy.ops.pick_operations(dtype, dtype, load_device=device)
    return type("Operations", (picked,), {"RMSNorm": RMSNorm})


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
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_progress_text(for_page(text), self.node_id, server.client_id)


def for_page(text: str) -> str:
    """``text`` as the page's live text shows it literally: the page takes it for HTML."""
    return html.escape(text).replace("\n", "<br>").replace("  ", " &nbsp;")

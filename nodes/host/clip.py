"""CLIPs that score, as ComfyUI's models: loaded and unloaded by it, kept between scores."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import torch

from ...training.rewards.clip import ClipScorer
from .folders import CLIP_FOLDER, FileState, clips, file_states, listed
from .page import stop_if_interrupted

_ACTIVATION_BYTES = 2**30


class HostedClip(ClipScorer):
    """A CLIP whose memory is ComfyUI's to manage."""

    def __init__(self, folder: Path):
        offload_device = comfy.model_management.unet_offload_device()
        with torch.inference_mode(False):  # so that it can score while something is trained
            super().__init__(folder, device=offload_device)
        for module in self.model.modules():  # a batch of a large one takes a processor long
            module.register_forward_pre_hook(lambda *_: stop_if_interrupted())
        self.device = comfy.model_management.get_torch_device()
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.model, load_device=self.device, offload_device=offload_device
        )

    def ask(self) -> None:
        """The run may be interrupted."""
        stop_if_interrupted()

    def prepare(self) -> None:
        """Load all of it, since its layers cannot be streamed. The run may be interrupted."""
        stop_if_interrupted()
        loaded = self.patcher.current_loaded_device() == self.device
        if not loaded or self.patcher.loaded_size() < self.patcher.model_size():
            comfy.model_management.load_models_gpu(
                [self.patcher], memory_required=_ACTIVATION_BYTES, force_full_load=True
            )


def load_clip(name: str) -> HostedClip:
    """The CLIP that a widget names, kept while its files stay. Raises as ``ClipScorer`` does."""
    folder = listed(name, clips(), CLIP_FOLDER)
    return _loaded(folder, tuple(file_states([folder])))


@lru_cache(maxsize=1)
def _loaded(folder: Path, files: tuple[FileState, ...]) -> HostedClip:
    return HostedClip(folder)

"""MMaDA-Parallel: the model, its sampler and its checkpoints. PyTorch and Pillow.

What is exported is imported when it is first used, so that errors, options and settings cost no
import of PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint.load import Model, load_checkpoint
    from .compositing import put_back
    from .errors import CheckpointError, InputError
    from .pipeline import (
        decode_image,
        decode_pixels,
        decode_text,
        encode_image,
        encode_instruction,
        masked_pixels,
    )
    from .sampler.loop import denoise
    from .sampler.settings import SamplerSettings
    from .state import MASKED, Prompt, Step, TokenState, Trajectory
    from .variants.base import MASKED_TEXT

__all__ = [
    "MASKED",
    "MASKED_TEXT",
    "CheckpointError",
    "InputError",
    "Model",
    "Prompt",
    "SamplerSettings",
    "Step",
    "TokenState",
    "Trajectory",
    "decode_image",
    "decode_pixels",
    "decode_text",
    "denoise",
    "encode_image",
    "encode_instruction",
    "load_checkpoint",
    "masked_pixels",
    "put_back",
]

_HOMES = {
    "checkpoint.load": ("Model", "load_checkpoint"),
    "compositing": ("put_back",),
    "errors": ("CheckpointError", "InputError"),
    "sampler.loop": ("denoise",),
    "sampler.settings": ("SamplerSettings",),
    "state": ("MASKED", "Prompt", "Step", "TokenState", "Trajectory"),
    "variants.base": ("MASKED_TEXT",),
}
"""The names of each module; the others are of ``pipeline``."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "pipeline")
    return getattr(import_module(f".{home}", __name__), name)

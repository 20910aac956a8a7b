"""MMaDA-Parallel: the model, its sampler and its checkpoints. Pure PyTorch."""

from .checkpoint.load import Model, load_checkpoint
from .errors import CheckpointError, InputError
from .pipeline import (
    decode_image,
    decode_pixels,
    decode_text,
    encode_image,
    encode_instruction,
    undecided_pixels,
)
from .sampler import SamplerSettings, denoise
from .state import MASKED, Prompt, Step, TokenState, Trajectory
from .variants.base import UNDECIDED

__all__ = [
    "MASKED",
    "UNDECIDED",
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
    "undecided_pixels",
]

"""The ComfyUI nodes: each translates between the graph and mmp_core."""

from comfyui_version import __version__ as _comfyui

if tuple(map(int, _comfyui.split(".")[:2])) < (0, 16):
    raise ImportError(
        f"MMaDA-Parallel needs ComfyUI 0.16.0 or newer; this is {_comfyui}. Update ComfyUI."
    )

from comfy_api.v0_0_2 import ComfyExtension, io

from ..demo.register import register as register_toy_world
from ..mmp_core import CheckpointError, InputError
from ..mmp_core.memory import OutOfMemory
from .collect import CollectDataset
from .compare import CompareAdapters
from .convert import ConvertCheckpoint
from .dataset import LoadEditDataset
from .decode import DecodeImage, DecodeText
from .demo_scene import DemoScene
from .denoise import ParallelDenoise
from .edit import ExtendCanvas, Remask, SetTokens
from .encode import EncodeInstruction
from .finetune import ParaRLFinetune, PreferenceFinetune, SFTFinetune
from .gate import guarded
from .load import ApplyLoRA, LoadModel
from .put_back import PutBack
from .score import PickSample, ScoreAlignment
from .token_files import LoadTokens, SaveTokens
from .trajectory import TrajectorySheet, TrajectoryStep
from .vary import Instructions, Vary

__all__ = ["MMaDAParallelExtension"]

register_toy_world()
for _error in (InputError, CheckpointError, OutOfMemory):
    _error.__module__ = (
        "builtins"  # ComfyUI shows the module in front of the sentence, but not this
    )


class MMaDAParallelExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [
            LoadModel,
            ApplyLoRA,
            EncodeInstruction,
            ParallelDenoise,
            DecodeText,
            DecodeImage,
            DemoScene,
            TrajectoryStep,
            TrajectorySheet,
            Remask,
            Vary,
            SetTokens,
            Instructions,
            ExtendCanvas,
            PutBack,
            SaveTokens,
            LoadTokens,
            ScoreAlignment,
            PickSample,
            LoadEditDataset,
            CollectDataset,
            ParaRLFinetune,
            SFTFinetune,
            PreferenceFinetune,
            CompareAdapters,
            ConvertCheckpoint,
        ]
        return [guarded(node) for node in nodes]

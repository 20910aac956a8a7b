"""All that touches ComfyUI itself: memory, layers, folders, and what a node shows on the page."""

from .clip import HostedClip, load_clip
from .models import (
    DTYPES,
    INT8,
    HostBudget,
    HostedAdapter,
    HostedModel,
    load,
    memory_cost,
    with_adapter,
)
from .page import (
    Progress,
    interruptible,
    metadata_wanted,
    nothing,
    save_temporary,
    stop_if_interrupted,
    to_intermediate,
)
from .stopping import Run, keep, stoppable, stops
from .training import Interrupted, TrainingMemory, trainable
from .votes import votes_so_far, waits
from .written import times_gone, wrote

__all__ = [
    "DTYPES",
    "INT8",
    "HostBudget",
    "HostedAdapter",
    "HostedClip",
    "HostedModel",
    "Interrupted",
    "Progress",
    "Run",
    "TrainingMemory",
    "interruptible",
    "keep",
    "load",
    "load_clip",
    "memory_cost",
    "metadata_wanted",
    "nothing",
    "save_temporary",
    "stop_if_interrupted",
    "stoppable",
    "stops",
    "times_gone",
    "to_intermediate",
    "trainable",
    "votes_so_far",
    "waits",
    "with_adapter",
    "wrote",
]

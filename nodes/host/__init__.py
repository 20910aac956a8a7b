"""The only place that imports ``comfy.*`` beyond the node API: memory, layers, the page."""

from .lora import with_adapter
from .models import DTYPES, HostBudget, HostedAdapter, HostedModel, clip_device, load
from .page import Progress, metadata_wanted, save_temporary, stop_if_interrupted, to_intermediate
from .training import Interrupted, TrainingRoom, trainable

__all__ = [
    "DTYPES",
    "HostBudget",
    "HostedAdapter",
    "HostedModel",
    "Interrupted",
    "Progress",
    "TrainingRoom",
    "clip_device",
    "load",
    "metadata_wanted",
    "save_temporary",
    "stop_if_interrupted",
    "to_intermediate",
    "trainable",
    "with_adapter",
]

"""What our nodes pass to each other, and where they are listed."""

from functools import partial

from comfy_api.v0_0_2 import io

Schema = partial(io.Schema, category="MMaDA-Parallel")

Model = io.Custom("MMADA_MODEL")
"""A ``host.HostedModel``."""
Prompt = io.Custom("MMADA_PROMPT")
"""An ``mmp_core.Prompt`` on the CPU."""
Tokens = io.Custom("MMADA_TOKENS")
"""An ``mmp_core.TokenState`` on the CPU."""
Trajectory = io.Custom("MMADA_TRAJECTORY")
"""An ``mmp_core.Trajectory`` on the CPU."""
LoraModel = io.Custom("LORA_MODEL")
"""ComfyUI's own: tensors by name, as its Save LoRA writes them."""
Dataset = io.Custom("MMADA_DATASET")
"""A ``training.data.EditDataset``: instructions, and pictures that are still on disk."""
LossMap = io.Custom("LOSS_MAP")
"""ComfyUI's own: ``{"loss": [float, …]}``, as its Plot Loss draws it."""

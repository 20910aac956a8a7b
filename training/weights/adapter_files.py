"""Write trained adapters, for this package and ComfyUI as one file, for PEFT as a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ...mmp_core.checkpoint.adapters import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    PREFIX,
    adapter_state,
    base_metadata,
    read_adapter,
)
from ...mmp_core.errors import InputError
from ...mmp_core.files import replacing
from .policies import LoRA

__all__ = ["adapter_tensors", "base_metadata", "read_adapter", "save_adapter", "save_peft_folder"]


def adapter_tensors(source: LoRA | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file holds, on the CPU: PEFT's names, alpha / rank multiplied into B.

    ``source``: an adapter in training, or a state by any names that :func:`adapter_state` reads.
    ComfyUI's ``LORA_MODEL`` is such a dictionary, which its Save LoRA writes as it is.
    """
    alpha = source.alpha if isinstance(source, LoRA) else None
    tensors = source.state_dict() if isinstance(source, LoRA) else source
    state = adapter_state(tensors, "The adapter", alpha)
    return {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def save_adapter(
    path: str | Path,
    source: LoRA | Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``source`` to ``path``, a .safetensors file, whole or not at all.

    ``metadata``: for the header, such as :func:`base_metadata` and the settings of the run; rank,
    alpha and layers of an adapter in training are added.
    """
    about = {"format": "pt", **(metadata or {})}
    if isinstance(source, LoRA):
        layers = sorted({name.rpartition(".")[2] for name in source.shapes})
        about |= {
            "rank": str(source.rank),
            "alpha": f"{source.alpha:g}",
            "layers": ", ".join(layers),
        }
    tensors = adapter_tensors(source)
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=about)


def save_peft_folder(
    folder: str | Path,
    source: LoRA | Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``source`` as ``PeftModel.from_pretrained`` reads it, around a model with our names.

    Those are the names of the released modelling code, too. Raises ``InputError`` where layers
    have different ranks.
    """
    tensors = adapter_tensors(source)
    ranks = {t.shape[0] for name, t in tensors.items() if name.endswith(".lora_A.weight")}
    if len(ranks) > 1:
        raise InputError(
            f"The layers of the adapter have ranks {sorted(ranks)}: PEFT's folder needs one rank."
        )
    layers = {name.removeprefix(PREFIX).rsplit(".", 2)[0] for name in tensors}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": ranks.pop(),
        "target_modules": sorted(layers),  # the last component alone would name the head, too
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    config["lora_alpha"] = config["r"]
    save_adapter(Path(folder) / PEFT_WEIGHTS, source, metadata)
    with replacing(Path(folder) / PEFT_CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2), encoding="utf-8")

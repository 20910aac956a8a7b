"""Write trained adapters, as one file that this package, ComfyUI and PEFT read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ...mmp_core.checkpoint.adapters import PREFIX, adapter_state, base_metadata, read_adapter
from ...mmp_core.checkpoint.tensors import SafetensorsFiles
from ...mmp_core.files import checked_path, replacing
from ...mmp_core.outside import check_kind
from .policies import LoRA

__all__ = ["adapter_tensors", "base_metadata", "read_adapter", "save_adapter", "stored_tensors"]


def adapter_tensors(source: LoRA | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file holds, on the CPU: PEFT's names, alpha / rank multiplied into B.

    ``source``: an adapter in training, or a state by any names that :func:`adapter_state` reads.
    ComfyUI's ``LORA_MODEL`` is such a dictionary, which its Save LoRA writes as it is.
    """
    alpha = source.alpha if isinstance(source, LoRA) else None
    tensors = source.state_dict() if isinstance(source, LoRA) else source
    state = adapter_state(tensors, "The adapter", alpha)
    if isinstance(source, LoRA):
        state |= source.dora_scales()
    return {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def stored_tensors(path: Path) -> dict[str, Tensor]:
    """What the file at ``path``, which :func:`save_adapter` wrote, holds: with DoRA's scales, too,
    which reading it for the model leaves out."""
    return dict(SafetensorsFiles.of(path))


def save_adapter(
    path: str | Path, source: LoRA | Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``source`` to ``path``, a .safetensors file, whole or not at all.

    ``metadata``: for the header, such as :func:`base_metadata` and the settings of the run; rank,
    alpha and layers of an adapter in training are added.
    """
    path = checked_path(path, "The adapter")
    check_kind(source, LoRA | Mapping, "source", "an adapter")
    check_kind(metadata, Mapping | None, "metadata", "texts by their names")
    for name, text in (metadata or {}).items():
        check_kind(name, str, "metadata", "texts by their names")
        check_kind(text, str, f"metadata {name}", "text")
    about = {"format": "pt", **(metadata or {})}
    if isinstance(source, LoRA):
        layers = sorted({name.rpartition(".")[2] for name in source.shapes})
        about |= {
            "rank": str(source.rank),
            "alpha": f"{source.alpha:g}",
            "layers": ", ".join(layers),
        }
    tensors = adapter_tensors(source)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=about)

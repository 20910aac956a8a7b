"""Absolute ids and segment order of the released variants, one :class:`Layout` each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError
from .base import Layout, ModelInput
from .mmada_parallel_a import VariantA
from .mmada_parallel_m import VariantM

__all__ = ["LAYOUTS", "Layout", "ModelInput", "VariantA", "VariantM", "detect_variant"]

LAYOUTS = {"A": VariantA, "M": VariantM}
"""Layout class by variant name."""

_BACKBONE = "model.transformer.wte.weight"
_ARCHITECTURES = {"LLaDAForMultiModalGeneration": "A", "MMadaModelLM": "M"}
_M_FIELDS = ("llm_vocab_size", "num_new_special_tokens")


def detect_variant(config: Mapping[str, Any], names: Iterable[str]) -> str:
    """``"A"`` or ``"M"``, from a parsed ``config.json`` and the checkpoint's tensor names.

    Raises ``CheckpointError`` where they are of neither, or a plain LLaDA without image codes.
    """
    if _BACKBONE not in set(names):
        raise CheckpointError(
            f"The checkpoint has no tensor {_BACKBONE}: it is not a LLaDA/MMaDA transformer."
        )
    for architecture in config.get("architectures") or ():
        if architecture in _ARCHITECTURES:
            return _ARCHITECTURES[architecture]
    if config.get("model_type") == "mmada" or any(field in config for field in _M_FIELDS):
        return "M"
    raise CheckpointError(
        f"config.json has architectures={config.get('architectures')!r} and "
        f"model_type={config.get('model_type')!r}; expected MMaDA-Parallel-A "
        "(LLaDAForMultiModalGeneration) or MMaDA-Parallel-M (MMadaModelLM)."
    )

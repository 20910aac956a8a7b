"""Checkpoints of neighbouring models that look like ours: same class, tensor names and shapes.

Only what a checkpoint is called tells them apart, so that a name decides here; the user's own word,
``family``, goes before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

ASSUMED, GIVEN, STATED, NAMED = "assumed", "given by the user", "stated in the file", "by its name"
"""How the family of a checkpoint is known."""

_OURS = re.compile(r"mmada[-_ ]?parallel", re.IGNORECASE)
_STRANGERS = {
    "Lumina-DiMOO": re.compile(r"dimoo", re.IGNORECASE),
    "MMaDA-8B": re.compile(r"mmada[-_ ]?8b", re.IGNORECASE),
    "LLaDA": re.compile(r"llada(?!formulti)", re.IGNORECASE),
}


def evidence_of(path: Path, config: Mapping[str, Any]) -> str:
    """:data:`NAMED` for a checkpoint that is called ours or was written by this pack, else
    :data:`ASSUMED`. Raises ``CheckpointError`` for one that goes by the name of another model."""
    if "default_text_length" in config:  # written by this pack's training
        return STATED
    said = config.get("_name_or_path")
    origins = {"its folder": names_of(path)}
    if isinstance(said, str):
        origins["_name_or_path in config.json"] = said
    for origin, name in origins.items():
        if _OURS.search(name):
            return NAMED
        for stranger, pattern in _STRANGERS.items():
            if pattern.search(name):
                raise CheckpointError(
                    f"{path} is {stranger} by {origin} ({name}), which this pack cannot run; if it "
                    "is MMaDA-Parallel after all, name its folder MMaDA-Parallel-A or -M, or say "
                    "--family A or M (in Python family=)."
                )
    return ASSUMED


def names_of(path: Path) -> str:
    """What ``path`` is called: its last part, or the repository's where it lies in a cache of
    Hugging Face, ``models--owner--name/snapshots/revision``."""
    repositories = [part for part in path.absolute().parts if part.startswith("models--")]
    if "snapshots" in path.parts and repositories:
        return repositories[-1].rpartition("--")[2]
    return path.stem if path.is_file() else path.absolute().name

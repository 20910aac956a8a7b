"""Which family a checkpoint is of, where its files look like those of several: same class, tensor
names and shapes.

Only what it is called tells them apart, or what was written down about it; the user's own word,
``family``, goes before both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import replacing
from ..outside import head_of, parsed_json, read_text
from . import registry
from .base import Variant

ASSUMED, GIVEN, STATED, NAMED = "assumed", "chosen by you", "stated in the file", "by its name"
REMEMBERED = "as you once chose"
"""How the family of a checkpoint is known."""
FAMILY_KEY = "mmada_parallel_family"
"""Its id in config.json, where this pack's training wrote it."""
HOW_TO_SAY = "choose it as family, in Load MMaDA-Parallel, on the command line or in Python"
NOTE = "mmada_parallel.json"
"""The file beside config.json that remembers what the user said: ``{"family": "D"}``."""

_OURS = re.compile(r"mmada[-_ ]?parallel([-_ ]?(?P<id>[am])(?![a-z]))?", re.IGNORECASE)
_IN_CONFIG = "_name_or_path in config.json"
"""What the weights were before they were saved: they themselves, or what they were trained from."""
_STRANGERS = {
    "LLaDA": re.compile(r"llada(?!formulti)", re.IGNORECASE),
}


def family_known(path: Path, config: Mapping[str, Any]) -> tuple[Variant | None, str]:
    """The family of a folder, and how it is known; ``None`` leaves it to ``config``. Raises
    ``CheckpointError`` for one that goes by the name of a model that the pack cannot run."""
    if said := config.get(FAMILY_KEY):
        return registry.variant_named(said), STATED
    if (note := remembered(path)) is not None:
        return note, REMEMBERED
    if "default_text_length" in config:  # written by this pack's training
        return None, STATED
    for origin, name in _origins(path, config).items():
        if _OURS.search(name):
            return None, NAMED
        if (variant := _called(name)) is not None and variant.recognises(config):
            return variant, NAMED
        if origin == _IN_CONFIG and any(_trained_from(name, config)):
            return None, ASSUMED
        for stranger, pattern in _STRANGERS.items():
            if pattern.search(name):
                raise CheckpointError(
                    f"{path} is {stranger} by {origin} ({name}), which this pack cannot run; if it "
                    "is MMaDA-Parallel after all, name its folder MMaDA-Parallel-A or -M, or "
                    "choose A or M as family."
                )
    return None, ASSUMED


def doubt_about(
    path: Path, config: Mapping[str, Any], variant: Variant, evidence: str
) -> str | None:
    """A sentence where what the checkpoint is called does not go with ``variant``, known by
    ``evidence``, or leaves another one possible."""
    for origin, name in _origins(path, config).items():
        ours, called = _OURS.search(name), _called(name)
        if evidence == GIVEN and (ours or called) and bool(ours) != (variant.called is None):
            return (
                f"It is loaded as {variant.name}, as you chose; by {origin} ({name}) it is "
                f"{called.name if called else 'MMaDA-Parallel'}, whose instructions have another "
                "form."
            )
        another = bool(called and not called.recognises(config))
        another |= bool(ours and ours["id"] and ours["id"].upper() != variant.id)
        if another and evidence != GIVEN:
            return f"By {origin} ({name}) it is another: its files are those of {variant.name}."
        if ours or evidence not in (NAMED, ASSUMED):
            return None
        if origin == _IN_CONFIG and (trained := _trained_from(name, config)):
            others = [other.name for other in trained if other is not variant]
            other = f"it is {' or '.join(others)}, {HOW_TO_SAY}"
            return (
                f"It is taken for {variant.name}; {origin} ({name}) may be what it was trained "
                f"from: if {other if others else 'it is that model, this pack cannot run it'}."
            )
    return None


def _trained_from(name: str, config: Mapping[str, Any]) -> list[Variant]:
    """The families of which a checkpoint may be that names ``name`` as where it comes from."""
    return [
        variant
        for variant in registry.VARIANTS
        if variant.trained_from
        and variant.recognises(config)
        and re.search(variant.trained_from, name, re.IGNORECASE)
    ]


def remembered(path: Path) -> Variant | None:
    """The family that the user once named for the checkpoint at ``path``, a folder."""
    try:
        said = parsed_json(read_text(path / NOTE), str(path / NOTE)).get("family", "")
    except FileNotFoundError:
        return None
    return registry.variant_named(said)


def remember(path: Path, variant: Variant) -> None:
    """Note beside the checkpoint at ``path`` what the user says, where that can be written."""
    try:
        with replacing(path / NOTE) as file:
            file.write_text(json.dumps({"family": variant.id}) + "\n", encoding="utf-8")
    except OSError:  # a folder of somebody else: the user says it again
        return


def _origins(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """What may name the checkpoint, by where that stands."""
    origins = {"its folder": names_of(path)}
    if title := re.search(r"^# +(.+)$", head_of(path / "README.md"), re.MULTILINE):
        origins["its README.md"] = title[1].strip()
    if isinstance(said := config.get("_name_or_path"), str):
        origins[_IN_CONFIG] = said
    return origins


def _called(name: str) -> Variant | None:
    """The family whose checkpoints are called so."""
    for variant in registry.VARIANTS:
        if variant.called and re.search(variant.called, name, re.IGNORECASE):
            return variant
    return None


def names_of(path: Path) -> str:
    """What ``path`` is called: its last part, or the repository's where it lies in a cache of
    Hugging Face, ``models--owner--name/snapshots/revision``."""
    repositories = [part for part in path.absolute().parts if part.startswith("models--")]
    if "snapshots" in path.parts and repositories:
        return repositories[-1].rpartition("--")[2]
    return path.stem if path.is_file() else path.absolute().name

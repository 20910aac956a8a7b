"""The checkpoint families that are known, one line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError, InputError, shown
from .base import Variant
from .lumina_dimoo import LuminaDiMOO
from .mmada_8b import MMaDA8B
from .mmada_parallel_a import MMaDAParallelA
from .mmada_parallel_m import MMaDAParallelM

VARIANTS: list[Variant] = [MMaDAParallelA(), MMaDAParallelM(), LuminaDiMOO(), MMaDA8B()]
"""Of several that a checkpoint may be of, the first is taken."""

BACKBONE = "model.transformer.wte.weight"


def variant_named(name: str | Variant) -> Variant:
    """The family of an id or name, in any case. Raises ``InputError`` for an unknown one."""
    if isinstance(name, Variant):
        return name
    if not isinstance(name, str):
        raise InputError(f"{shown(name)} is not a checkpoint family; expected its id or name.")
    for variant in VARIANTS:
        if _plain(name) in (_plain(variant.id), _plain(variant.name)):
            return variant
    known = ", ".join(f"{variant.id} ({variant.name})" for variant in VARIANTS)
    raise InputError(f"{shown(name)} is not a checkpoint family; expected {known}.")


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def variant_of(
    config: Mapping[str, Any], names: Iterable[str], family: str | Variant | None = None
) -> Variant:
    """The family of a checkpoint, from its parsed ``config.json`` and its tensors' names.
    ``family``: settles what these cannot tell. Raises ``CheckpointError`` for a checkpoint of no
    known family or of another one, ``InputError`` for an unknown ``family``."""
    if BACKBONE not in set(names):
        raise CheckpointError(
            f"The checkpoint has no tensor {BACKBONE}: it is not a LLaDA/MMaDA transformer."
        )
    candidates = VARIANTS if family is None else [variant_named(family)]
    for variant in candidates:
        if variant.recognises(config):
            return variant
    raise CheckpointError(
        f"config.json has architectures={config.get('architectures')!r} and "
        f"model_type={config.get('model_type')!r}, which is not a checkpoint of "
        f"{' or '.join(variant.name for variant in candidates)}."
    )


def image_tokenizer_folders() -> set[str]:
    """Names of the folders that hold an image tokenizer and no checkpoint."""
    repositories = [variant.image_repository for variant in VARIANTS]
    cached = {cache_name(repository) for repository in repositories if repository}
    return cached.union(*(variant.image_folders for variant in VARIANTS))


def cache_name(repository: str) -> str:
    """The folder of an ``owner/name`` in the cache of Hugging Face."""
    return f"models--{repository.replace('/', '--')}"

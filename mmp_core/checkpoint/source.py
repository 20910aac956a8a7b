"""What a checkpoint stores, before anything is built; folders in the released layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..variants.base import Variant
from ..variants.registry import variant_of
from .tensors import SafetensorsFiles, read_json

_TRANSFORMER_FILES = ("model.safetensors.index.json", "model.safetensors")
_IMAGE_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)


Family = str | Variant | None
"""What the user says a checkpoint is; ``None`` leaves it to the files."""


@dataclass(frozen=True)
class Source:
    """A checkpoint as stored, before anything is built.

    ``weights`` and ``image_weights``: tensors by name, read when asked for. ``image_config``: the
    image tokenizer's own configuration.
    """

    path: Path
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: Any
    variant: Variant
    image_path: Path
    image_config: Mapping[str, Any]
    image_weights: Mapping[str, Tensor]


def open_folder(folder: Path, image_tokenizer_path: Path | None, family: Family) -> Source:
    """A checkpoint in the released layout. Raises ``CheckpointError``."""
    config = read_json(folder / "config.json")
    weights = _transformer_weights(folder)
    variant = variant_of(config, weights, family)
    image_file, image_config, image_weights = image_tokenizer(folder, variant, image_tokenizer_path)
    return Source(
        path=folder,
        config=config,
        weights=weights,
        tokenizer=read_tokenizer(folder),
        variant=variant,
        image_path=image_file,
        image_config=image_config,
        image_weights=image_weights,
    )


def image_tokenizer(
    folder: Path, variant: Variant, given: Path | None
) -> tuple[Path, dict[str, Any], Mapping[str, Tensor]]:
    """File, configuration and tensors of the image tokenizer: where the user says, else inside or
    beside ``folder``."""
    file = _image_file(folder, variant, given)
    return file, _image_config(file, variant), _image_weights(file)


def _transformer_weights(folder: Path) -> Mapping[str, Tensor]:
    index, single = (folder / name for name in _TRANSFORMER_FILES)
    if index.is_file():
        return SafetensorsFiles.sharded(index)
    if single.is_file():
        return SafetensorsFiles.of(single)
    raise CheckpointError(
        f"No weights in {folder}: expected {single.name}, or {index.name} with its shards."
    )


def read_tokenizer(folder: Path, name: str | None = None) -> Any:
    """The tokenizer whose files ``folder`` holds; ``name`` tells where they come from."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"tokenizer.json is missing in {name or folder}: put the tokenizer files of the "
            "checkpoint's repository there."
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions on damaged files
        raise CheckpointError(
            f"The tokenizer in {name or folder} cannot be read ({error})."
        ) from None


def _image_file(folder: Path, variant: Variant, given: Path | None) -> Path:
    if given is not None and given.is_file():
        return given
    roots = (folder, folder.parent) if given is None else (given,)
    places = [root / name for root in roots for name in variant.image_folders]
    places += [] if given is None else [given]
    for file in (place / name for place in places for name in _IMAGE_FILES):
        if file.is_file():
            return file
    if given is not None:
        raise CheckpointError(f"No image tokenizer at {given}: expected one of its weight files.")
    advice = variant.image_advice.format(folder=folder)
    raise CheckpointError(f"The image tokenizer is missing: {advice}.")


def _image_config(weights: Path, variant: Variant) -> dict[str, Any]:
    file = weights.parent / "config.json"
    is_the_checkpoint_s = (weights.parent / "tokenizer.json").is_file()
    if not variant.image_config_needed and (is_the_checkpoint_s or not file.is_file()):
        return {}
    return read_json(file)


def _image_weights(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        return SafetensorsFiles.of(file)
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds on damaged or unsafe files
        raise CheckpointError(
            f"{file} cannot be read ({type(error).__name__}); download it again."
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise CheckpointError(f"{file} holds no tensors by name; download it again.")
    return weights

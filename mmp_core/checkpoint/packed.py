"""One ``.safetensors`` file with all of a checkpoint: what :mod:`.convert` writes.

Transformer tensors have their released names, those of the image tokenizer the prefix
``image_tokenizer.``. The header holds, as strings, :data:`ABOUT` (JSON: version, variant,
quantization, provenance), ``config.json``, ``image_tokenizer/config.json``, and the tokenizer's
files as ``tokenizer/<name>``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..outside import parsed_json, read_text
from ..variants.registry import variant_of
from ..variants.strangers import GIVEN, STATED
from .config_check import check_transformer, checked_config
from .source import TOKENIZER_FILES, Family, Source, image_tokenizer, with_stored_rows
from .tensors import SafetensorsFiles, refuse_pointer
from .text_tokenizer import FILE_BYTES, tokenizer_of

ABOUT = "mmada_parallel"
IMAGE_PREFIX = "image_tokenizer."
VERSION = 1

_FOLDER = "the folder that holds config.json and the .safetensors weights"
_CONFIG, _IMAGE_CONFIG, _TOKENIZER = "config.json", "image_tokenizer/config.json", "tokenizer/"


def packed_metadata(
    source: Source, quantization: str, provenance: Mapping[str, Any]
) -> dict[str, str]:
    """The header's strings for ``source``, a folder."""
    about = {
        "version": VERSION,
        "variant": source.variant.id,
        "quantization": quantization,
        "provenance": provenance,
    }
    strings = {
        "format": "pt",
        ABOUT: json.dumps(about),
        _CONFIG: json.dumps(source.config),
        _IMAGE_CONFIG: json.dumps(source.image_config),
    }
    for file in (source.path / name for name in TOKENIZER_FILES):
        if file.is_file():
            strings[_TOKENIZER + file.name] = read_text(file, FILE_BYTES)
    return strings


def open_packed(file: Path, image_tokenizer_path: Path | None, family: Family) -> Source:
    """A checkpoint in one file; its own image tokenizer gives way to one named by the user, and the
    family in its header to ``family``. Raises ``CheckpointError``."""
    _refuse_other_files(file)
    tensors = SafetensorsFiles.of(file)
    metadata = tensors.metadata(file)
    if ABOUT not in metadata:
        raise CheckpointError(
            f"{file} was not written by `mmada-parallel convert`; give a file that was, or "
            f"{_folder_of(file)}."
        )
    tensors.check_kinds()
    about = _parsed(metadata, ABOUT, file)
    if about.get("version") != VERSION:
        raise CheckpointError(f"{file} has a different version from {VERSION}: update this pack.")
    config = checked_config(_parsed(metadata, _CONFIG, file), f"{_CONFIG} of {file}")
    weights, image_weights = tensors.split(IMAGE_PREFIX)
    stated = about.get("variant")
    config = with_stored_rows(config, weights)
    stated = stated if isinstance(stated, str) else None
    variant = variant_of(config, weights, family or stated)
    check_transformer(config, weights, f"{_CONFIG} of {file}")
    doubt = None
    if stated and stated not in (variant.id, variant.name):
        doubt = f"It is loaded as {variant.name}, as you chose; its header says {stated}."
    texts = {n: metadata[_TOKENIZER + n] for n in TOKENIZER_FILES if _TOKENIZER + n in metadata}
    image_path, image_config = file, _parsed(metadata, _IMAGE_CONFIG, file)
    if image_tokenizer_path is not None:
        image_path, image_config, image_weights = image_tokenizer(
            file.parent, variant, image_tokenizer_path
        )
    return Source(
        path=file,
        config=config,
        weights=weights,
        tokenizer=tokenizer_of(texts, str(file)),
        variant=variant,
        evidence=GIVEN if family else STATED,
        doubt=doubt,
        image_path=image_path,
        image_config=image_config,
        image_weights=image_weights,
        licences=_stated_licences(about),
    )


def _stated_licences(about: Mapping[str, Any]) -> dict[str, str]:
    """Those in the header; none where it says something else there."""
    provenance = about.get("provenance")
    licences = provenance.get("licences") if isinstance(provenance, dict) else None
    stated = licences.items() if isinstance(licences, dict) else ()
    return {name: licence for name, licence in stated if isinstance(licence, str)}


def _folder_of(file: Path) -> str:
    if (file.parent / _CONFIG).is_file():
        return f"{file.parent}, the folder that it lies in"
    return _FOLDER


def _refuse_other_files(file: Path) -> None:
    refuse_pointer(file)
    with file.open("rb") as stream:
        magic = stream.read(4)
    if file.suffix.lower() == ".gguf" or magic == b"GGUF":
        raise CheckpointError(
            f"{file} is a GGUF file, which this pack cannot read; give {_FOLDER}."
        )
    if file.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt"):
        raise CheckpointError(
            f"{file} is a pickled file, which can run code and is not read; give {_FOLDER}."
        )
    if file.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{file} is not a .safetensors file; give {_folder_of(file)}.")


def _parsed(metadata: Mapping[str, str], key: str, file: Path) -> dict[str, Any]:
    try:
        return parsed_json(metadata[key], f"{key} of {file}")
    except (KeyError, CheckpointError):
        raise CheckpointError(
            f"{file} has no readable {key} in its header; convert it again."
        ) from None

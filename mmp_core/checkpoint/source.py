"""What a checkpoint stores, before anything is built; folders in the released layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..outside import head_of, read_text
from ..variants.base import Variant
from ..variants.registry import BACKBONE, VARIANTS, variant_of
from ..variants.strangers import ASSUMED, GIVEN, HOW_TO_SAY, doubt_about, family_known
from .config_check import check_transformer, checked_config
from .places import checkpoint_folder, image_file, transformer_weights
from .tensors import (
    DTYPES,
    SafetensorsFiles,
    holds_values,
    outline_of,
    read_json,
    read_pickled,
    refuse_pointer,
)
from .text_tokenizer import FILE_BYTES, TextTokenizer, tokenizer_of

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


Family = str | Variant | None
"""What the user says a checkpoint is; ``None`` leaves it to the files."""


@dataclass(frozen=True)
class Source:
    """A checkpoint as stored, before anything is built. ``weights`` and ``image_weights``: tensors
    by name, read when asked for. ``image_config``: the image tokenizer's own configuration.
    ``evidence``: how the variant is known, see :mod:`~..variants.strangers`; ``doubt``: a sentence
    where the user's word and the checkpoint's differ. ``licences``: of the weights, as their
    folders state them, by repository or folder. ``origin``: repository and commit where known.
    ``room``: bytes of disk that reading the weights takes."""

    path: Path
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: Any
    variant: Variant
    image_path: Path
    image_config: Mapping[str, Any]
    image_weights: Mapping[str, Tensor]
    evidence: str = ASSUMED
    doubt: str | None = None
    licences: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    room: int = 0

    @property
    def files(self) -> list[Path]:
        """Those that are read; of a folder, all in it that a checkpoint has beside its weights."""
        files = self.weights.files if isinstance(self.weights, SafetensorsFiles) else []
        files = [*files, self.image_path, self.image_path.with_name("config.json")]
        names = ("config.json", *TOKENIZER_FILES) if self.path.is_dir() else ()
        return [*files, *(self.path / name for name in names)]


def open_folder(
    folder: Path,
    image_tokenizer_path: Path | None,
    family: Family,
    weights: Mapping[str, Tensor] | None = None,
) -> Source:
    """A checkpoint in the released layout. ``weights``: where they are not in ``folder``. Raises
    ``CheckpointError``."""
    folder = checkpoint_folder(folder)
    file = folder / "config.json"
    config = checked_config(read_json(file), str(file))
    known, evidence = (family, GIVEN) if family else family_known(folder, config)
    if weights is None:
        weights = transformer_weights(folder)
    config = with_stored_rows(config, weights)
    variant = variant_of(config, weights, known)
    check_transformer(config, weights, str(file))
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
        evidence=evidence,
        doubt=doubt_about(folder, config, variant, evidence),
        licences=_stated_licences(folder, image_file.parent),
    )


def assumption(source: Source) -> str | None:
    """A sentence where nothing tells the family of ``source`` from another."""
    if source.evidence != ASSUMED:
        return None
    others = [v for v in VARIANTS if v is not source.variant and v.recognises(source.config)]
    if not others:
        return None
    return (
        f"It is taken for {source.variant.name}, since nothing says more than its shapes; if it is "
        f"{' or '.join(variant.name for variant in others)}, {HOW_TO_SAY}."
    )


def _stated_licences(*folders: Path) -> dict[str, str]:
    """What the README.md of a folder says in its head, as repositories of Hugging Face do."""
    licences = {}
    for folder in folders:
        first, *lines = head_of(folder / "README.md").split("\n")
        ends = [number for number, line in enumerate(lines) if line.startswith("---")]
        if first.rstrip() != "---" or not ends:
            continue
        for line in lines[: ends[0]]:
            if said := re.match(r"license:[ \t]*[\"']?([\w.+-]+)", line):
                licences[folder.name] = said[1]
                break
    return licences


def with_stored_rows(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """``config`` with the rows of the embedding that is stored: after a resize those in the file
    may be of an earlier save."""
    if BACKBONE not in weights:
        return dict(config)
    shape = outline_of(weights, BACKBONE).shape
    if len(shape) != 2 or not min(shape):
        raise CheckpointError(f"{BACKBONE} has shape {shape}; expected rows and columns.")
    rows = shape[0]
    fixed = {"new_vocab_size": rows} if config.get("new_vocab_size") else {}
    return {**config, **fixed, "embedding_size": rows}


def image_tokenizer(
    folder: Path, variant: Variant, given: Path | None
) -> tuple[Path, dict[str, Any], Mapping[str, Tensor]]:
    """File, configuration and tensors of the image tokenizer: where the user says, else inside or
    beside ``folder``."""
    file = image_file(folder, variant, given)
    config = file.with_name("config.json")
    is_the_checkpoint_s = file.with_name("tokenizer.json").is_file()
    needed = variant.image_config_needed or (config.is_file() and not is_the_checkpoint_s)
    return file, read_json(config) if needed else {}, _image_weights(file)


def read_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer whose files ``folder`` holds."""
    texts = {}
    for file in (folder / name for name in TOKENIZER_FILES):
        if file.is_file():
            refuse_pointer(file)
            texts[file.name] = read_text(file, FILE_BYTES)
    return tokenizer_of(texts, str(folder))


def _image_weights(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        files = SafetensorsFiles.of(file)
        files.check_kinds()
        return files
    refuse_pointer(file)
    try:
        weights = read_pickled(file, mmap=True)
    except Exception as error:  # torch.load raises many kinds on damaged or unsafe files
        raise CheckpointError(
            f"{file} cannot be read ({type(error).__name__}); download it again."
        ) from None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and holds_values(tensor) for name, tensor in weights.items()
    ):
        raise CheckpointError(f"{file} holds no tensors by name; download it again.")
    for name, tensor in weights.items():
        if tensor.dtype not in DTYPES.values():
            raise CheckpointError(f"{file} holds {name} as {tensor.dtype}, which is unknown.")
    return weights

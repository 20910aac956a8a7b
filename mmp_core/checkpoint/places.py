"""Where the files of a checkpoint lie, in folders as people have them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from ..outside import read_text
from ..variants.base import Variant
from ..variants.registry import cache_name, image_tokenizer_folders
from .tensors import SafetensorsFiles

TRANSFORMER_FILES = ("model.safetensors.index.json", "model.safetensors")
IMAGE_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)

_SHARD = re.compile(r"(?P<name>.+-)(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
_UNREAD = (".gguf", ".bin", ".pt", ".pth", ".ckpt")
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2")


def checkpoint_folder(folder: Path) -> Path:
    """``folder``, or the revision to use where it is a repository in the cache of Hugging Face.
    Raises ``CheckpointError`` where it holds folders of checkpoints and is none."""
    if (folder / "config.json").exists():
        return folder
    if (revision := cached_revision(folder, TRANSFORMER_FILES)) is not None:
        return revision
    for inside in sorted(folder.iterdir()):
        if is_checkpoint(inside):
            raise CheckpointError(
                f"{folder} is not a checkpoint itself: give one in it, as {inside}."
            )
    return folder


def holds_model(folder: Path) -> bool:
    """Whether ``folder`` looks like a model's, or like one in the cache of Hugging Face."""
    return (folder / "config.json").is_file() or (folder / "snapshots").is_dir()


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` looks like a model's other than an image tokenizer."""
    return holds_model(folder) and folder.name not in image_tokenizer_folders()


def cached_revision(folder: Path, files: Collection[str]) -> Path | None:
    """The folder of the revision to use of a repository in the cache of Hugging Face; ``None``
    where ``folder`` is none. That is ``main``, else the newest, of those with a config.json and one
    of ``files`` if there are any."""
    revisions = folder if folder.name == "snapshots" else folder / "snapshots"
    if not revisions.is_dir():
        return None
    reference = revisions.parent / "refs" / "main"
    main = read_text(reference).strip() if reference.is_file() else ""
    found = [revision for revision in revisions.iterdir() if revision.is_dir()]
    if not found:
        raise CheckpointError(f"{revisions} is empty: download the checkpoint again.")
    found.sort(key=lambda revision: (revision.name == main, revision.stat().st_mtime), reverse=True)
    whole = (r for r in found if (r / "config.json").is_file() and _any_of(r, files))
    return next(whole, found[0])


def _any_of(folder: Path, files: Collection[str]) -> bool:
    return any((folder / name).is_file() for name in files)


def transformer_weights(folder: Path) -> Mapping[str, Tensor]:
    """Those of a checkpoint's folder. Raises ``CheckpointError``."""
    files = _transformer_files(folder)
    files.check_kinds()
    return files


def _transformer_files(folder: Path) -> SafetensorsFiles:
    index, single = (folder / name for name in TRANSFORMER_FILES)
    if single.is_file():  # goes first, as in transformers: an index may be of an earlier save
        return SafetensorsFiles.of(single)
    if index.is_file():
        return SafetensorsFiles.sharded(index)
    if shards := _shards(folder):
        return SafetensorsFiles.of(*shards)
    raise CheckpointError(
        f"No weights in {folder}: expected {single.name}, or {index.name} with its shards"
        f"{_instead(folder)}."
    )


def _shards(folder: Path) -> list[Path]:
    """The files of weights in several parts whose index is not there."""
    names = [match for file in sorted(folder.iterdir()) if (match := _SHARD.fullmatch(file.name))]
    if len({(match["name"], match["total"]) for match in names}) != 1:
        return []
    (name, total), parts = (names[0][part] for part in ("name", "total")), []
    for number in range(1, int(total) + 1):
        part = folder / f"{name}{number:05}-of-{total}.safetensors"
        if not part.is_file():
            raise CheckpointError(f"{part.name} is missing in {folder}: download it there.")
        parts.append(part)
    return parts


def _instead(folder: Path) -> str:
    """What there is in place of the weights, for the message."""
    for file in sorted(folder.iterdir()):
        if file.is_symlink() and not file.exists():
            return f"; {file.name} is a link to a file that is not there: download it again"
        if file.suffix in _UNFINISHED:
            return f"; {file.name} is a download that has not ended: begin it again"
        if file.suffix in _UNREAD:
            return f"; {file.name} is of a kind that this pack does not read"
        if file.suffix == ".safetensors" and file.is_file():
            return f"; if {file.name} holds them, rename it"
    if any((folder / ".cache").glob("huggingface/download/**/*.incomplete")):
        return "; a download into it has not ended: give the same `hf download` again"
    return ""


def image_file(folder: Path, variant: Variant, given: Path | None) -> Path:
    """The file of the image tokenizer: where the user says, else inside or beside ``folder``, or in
    the cache of Hugging Face where ``folder`` lies in it. Raises ``CheckpointError``."""
    if given is not None and given.is_file():
        return given
    roots = (folder, folder.parent) if given is None else (given,)
    places = [root / name for root in roots for name in variant.image_folders]
    places += _cached_image_tokenizer(folder, variant) if given is None else [given]
    if given is not None and (revision := cached_revision(given, IMAGE_FILES)) is not None:
        places.append(revision)
    for file in (place / name for place in places for name in IMAGE_FILES):
        if file.is_file():
            return file
    if given is not None:
        raise CheckpointError(f"No image tokenizer at {given}: expected one of its weight files.")
    advice = variant.image_advice.format(folder=folder)
    raise CheckpointError(f"The image tokenizer is missing: {advice}.")


def _cached_image_tokenizer(folder: Path, variant: Variant) -> list[Path]:
    if variant.image_repository is None:
        return []
    name = cache_name(variant.image_repository)
    roots = [folder.parent, *(folder.parents[2:3] if folder.parent.name == "snapshots" else ())]
    revisions = (cached_revision(root / name, IMAGE_FILES) for root in roots)
    return [revision for revision in revisions if revision is not None]

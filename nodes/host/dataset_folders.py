"""Datasets to train on inside ComfyUI's input folder, by the names that a widget offers."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...mmp_core import InputError
from ...training.data.registry import GENERATED, GeneratedDataset
from ...training.data.sources import files_of, is_saved_dataset
from .folders import FileState, file_states, missing

_DEPTH = 3
"""Levels of folders below the input folder that are searched."""


def generated() -> dict[str, GeneratedDataset]:
    """Datasets that are not in any folder."""
    return {dataset.label: dataset for dataset in GENERATED.values()}


def stored() -> dict[str, Path]:
    """Folders with instructions, manifests and saved datasets."""
    paths: dict[str, Path] = {}
    root = Path(folder_paths.get_input_directory())

    def visit(folder: Path, depth: int) -> None:
        try:
            inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        except OSError:  # not readable: not offered
            return
        holds_items = any(p.suffix.lower() == ".txt" for p in inside) or is_saved_dataset(folder)
        if folder != root and holds_items:
            paths[folder.relative_to(root).as_posix()] = folder
        for path in inside:
            if path.suffix.lower() == ".jsonl" and path.is_file():
                paths[path.relative_to(root).as_posix()] = path
            elif depth and path.is_dir():
                visit(path, depth - 1)

    visit(root, _DEPTH)
    return dict(sorted(paths.items()))


def dataset_path(name: str) -> Path:
    """Raises ``InputError`` for a name that :func:`stored` does not list."""
    paths = stored()
    if name not in paths:
        raise InputError(missing(name, folder_paths.get_input_directory()))
    return paths[name]


def dataset_fingerprint(name: str) -> list[FileState]:
    """Of every file of the dataset; nothing for a generated one."""
    if name in generated():
        return []
    try:
        return file_states(files_of(dataset_path(name)))
    except (InputError, OSError):  # the node says why when it runs
        return []

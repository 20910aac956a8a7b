"""Datasets to train on inside ComfyUI's input folder, by the names that a widget offers."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...mmp_core import InputError
from ...training.data.sources import files_of, is_saved_dataset

DEMO = "demo (toy world)"

_DEPTH = 3
"""Levels of folders below the input folder that are searched."""


def dataset_names() -> list[str]:
    """The toy world; then folders with instructions, manifests and saved datasets."""
    return [DEMO, *_datasets()]


def dataset_path(name: str) -> Path:
    """Raises ``InputError`` for a name that :func:`dataset_names` does not list."""
    listed = _datasets()
    if name not in listed:
        raise InputError(
            f"{name!r} is not in {folder_paths.get_input_directory()}: put a folder of pictures "
            "and instructions there, then refresh ComfyUI's page."
        )
    return listed[name]


def dataset_fingerprint(name: str) -> list[tuple[str, int, int]]:
    """Name, size and time of every file of the dataset; nothing for the toy world."""
    if name == DEMO:
        return []
    try:
        files = [(file, file.stat()) for file in files_of(dataset_path(name))]
    except (InputError, OSError):  # told when the node runs
        return []
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in files]


def _datasets() -> dict[str, Path]:
    found: dict[str, Path] = {}
    root = Path(folder_paths.get_input_directory())

    def visit(folder: Path, depth: int) -> None:
        try:
            inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        except OSError:  # not readable: not offered
            return
        holds_items = any(p.suffix.lower() == ".txt" for p in inside) or is_saved_dataset(folder)
        if folder != root and holds_items:
            found[folder.relative_to(root).as_posix()] = folder
        for path in inside:
            if path.suffix.lower() == ".jsonl" and path.is_file():
                found[path.relative_to(root).as_posix()] = path
            elif depth and path.is_dir():
                visit(path, depth - 1)

    visit(root, _DEPTH)
    return dict(sorted(found.items()))

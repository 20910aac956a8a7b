"""Datasets, picks and training runs in ComfyUI's folders, by the names that widgets offer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import folder_paths

from ...mmp_core import InputError
from ...mmp_core.errors import sentence
from ...mmp_core.files import writing
from ...mmp_core.outside import checked_text
from ...training.data.fields import PICTURES
from ...training.data.fields import listed as listed_files
from ...training.data.registry import GENERATED, GeneratedDataset
from ...training.data.sources import FILES, KINDS, files_of
from ...training.dpo.preferences import picks_in
from ...training.loop.keeping import kept_adapters
from .core import leave_if_interrupted
from .folders import (
    FOLDER,
    check_name,
    file_states,
    folders_and_files,
    is_a,
    not_listed,
    paths_in,
)

_OF_THE_PAGE = ("3d", "clipspace", "pasted")
"""Folders in the input folder that ComfyUI's page makes itself."""
_DATASET_DEPTH = 3
"""Levels of folders below the input folder that are searched."""


def generated_datasets() -> dict[str, GeneratedDataset]:
    """Datasets that are not in any folder."""
    return {dataset.label: dataset for dataset in GENERATED.values()}


def _input_entries() -> Iterator[tuple[str, Path]]:
    """Folders in the input folder, as deep as datasets are looked for, and files that may be one,
    by their names from there. Pictures may be many, and are only listed."""
    root = Path(folder_paths.get_input_directory())

    def visit(folder: Path, depth: int) -> Iterator[Path]:
        folders, files = folders_and_files(folder, FILES)
        yield from files
        for path in folders if depth else ():
            yield path
            yield from visit(path, depth - 1)

    for path in visit(root, _DATASET_DEPTH):
        yield path.relative_to(root).as_posix(), path


def _is_dataset(path: Path) -> bool:
    return any(is_a(kind.offered, path) for kind in KINDS)


def stored_datasets() -> dict[str, Path]:
    """Folders with instructions, manifests and saved datasets."""
    return {name: path for name, path in sorted(_input_entries()) if _is_dataset(path)}


def unusable_datasets() -> dict[str, str]:
    """Folders of pictures that are no dataset: how they are listed, and why."""
    reasons = {}
    for name, path in sorted(_input_entries()):
        if (
            name.partition("/")[0] in _OF_THE_PAGE
            or not is_a(Path.is_dir, path)
            or _is_dataset(path)
        ):
            continue
        with suppress(InputError):
            pictures = [file for file in listed_files(path) if file.suffix.lower() in PICTURES]
            if pictures:
                first = pictures[0]
                reasons[f"{name} (unusable: pictures without a .txt)"] = sentence(
                    f"The folder {name} has {len(pictures)} pictures and no instructions: write "
                    f"what to change in {first.name} into {first.stem}.txt beside it, and so on "
                    "for the others."
                )
    return reasons


def dataset_path(name: str) -> Path:
    """Raises ``InputError`` for a name that :func:`stored_datasets` does not list."""
    paths = stored_datasets()
    if name not in paths:
        missing = not_listed(name, folder_paths.get_input_directory())
        raise InputError(unusable_datasets().get(name) or missing)
    return paths[name]


def new_dataset(name: str) -> Path:
    """The folder of a dataset to add to, in the input folder. Raises ``InputError`` for a name that
    cannot be that of a folder."""
    check_name("dataset", name)
    return Path(folder_paths.get_input_directory()) / name


def dataset_files(name: str) -> Iterable[Path]:
    """Every file of the dataset, for a fingerprint; none for a generated one."""
    if name in generated_datasets():
        return []
    return files_of(dataset_path(name), leave_if_interrupted)


def runs_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / FOLDER / "training"


def preference_sets() -> dict[str, Path]:
    """Folders of picks in the output folder."""
    return {path.name: path for path in paths_in(_preferences()) if is_a(picks_in, path)}


def preference_set(name: str) -> Path:
    """Raises ``InputError`` for a folder that :func:`preference_sets` does not list."""
    sets = preference_sets()
    if checked_text(name, "preferences") not in sets:
        raise InputError(
            f"{name!r} is no folder of picks in {_preferences()}: give Pick Sample a name to keep "
            "its picks under, pick, then press R."
        )
    return sets[name]


def new_preference_set(name: str) -> Path:
    """The folder of picks to add to. Raises ``InputError`` for a name that cannot be one."""
    check_name("preferences", name)
    return _preferences() / name


def _preferences() -> Path:
    return Path(folder_paths.get_output_directory()) / FOLDER / "preferences"


def runs_with_adapters() -> dict[str, Path]:
    """Folders of runs that kept adapters, newest first."""
    runs = [path for path in paths_in(runs_folder()) if is_a(kept_adapters, path)]

    def changed(run: Path) -> int:
        files = [path for path in paths_in(run) if is_a(Path.is_file, path)]
        return max((time for *_, time in file_states(files)), default=0)

    runs.sort(key=changed, reverse=True)
    return {path.name: path for path in runs}


def run_with_adapters(name: str) -> Path:
    """Raises ``InputError`` for a run that :func:`runs_with_adapters` does not list."""
    runs = runs_with_adapters()
    if name not in runs:
        raise InputError(
            f"{name!r} is not a run with adapters in {runs_folder()}: train with keep_every above "
            "0 or with held-out items, then press R."
        )
    return runs[name]


@contextmanager
def run_folder(name: str, resume: bool) -> Iterator[Path]:
    """The newest folder of the runs called ``name`` to resume, else a new one, which no other
    process is given, and which is removed at the end where it is still empty.

    Raises ``InputError`` for a name that cannot be that of a folder.
    """
    check_name("run_name", name)
    newest = newest_run(name)
    folder = newest if newest and resume else _new_run(name)
    try:
        yield folder
    finally:
        with suppress(OSError):  # not empty
            for empty in (folder, folder.parent, folder.parent.parent):
                empty.rmdir()


def _new_run(name: str) -> Path:
    newest = newest_run(name)
    number = int(newest.name.rpartition("_")[2]) if newest else 0
    while True:
        number += 1
        folder = runs_folder() / f"{name}_{number:05}"
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        # another process took the name, or removed the empty folder that it would lie in
        with writing(folder), suppress(FileExistsError, FileNotFoundError):
            folder.mkdir()
            return folder


def newest_run(name: str) -> Path | None:
    """The newest folder of the runs called ``name``, if there is one."""
    pattern = re.compile(re.escape(name) + r"_(\d{5,})")
    matches = (pattern.fullmatch(path.name) for path in paths_in(runs_folder()))
    runs = {int(match[1]): match[0] for match in matches if match}
    return runs_folder() / runs[max(runs)] if runs else None

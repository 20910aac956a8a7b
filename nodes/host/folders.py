"""Models, adapters and token files in ComfyUI's folders, by the names that widgets offer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any, TypeVar

import folder_paths

from ...mmp_core import CheckpointError, InputError
from ...mmp_core.checkpoint.adapters import PEFT_CONFIG
from ...mmp_core.checkpoint.load import EMBEDDED
from ...mmp_core.checkpoint.places import holds_model, is_checkpoint
from ...mmp_core.errors import sentence, shortened, shown
from ...mmp_core.files import AlreadyExists, checked_path, is_file, is_plain_name
from ...mmp_core.outside import checked_text
from ...mmp_core.variants.registry import image_tokenizer_folders
from ...training.rewards.clip import DEMO_CLIP
from ...training.rewards.clip_files import is_clip
from .core import leave_if_interrupted

FOLDER = "mmada_parallel"
"""Name of the model folder: ``models/mmada_parallel``, or what extra_model_paths.yaml says."""
CLIP_FOLDER = "open_clip"
"""Name of the folder of CLIPs that score, each in a folder of its own."""
NO_ADAPTER = "none"
"""What a widget offers before the adapters of ``models/loras``."""
TOKENS_ENDING = ".tokens.safetensors"

FileState = tuple[str, int, int]
"""Name, size in bytes and time of change in ns of a file: another one means other content."""

_ADAPTER_FOLDER = "loras"
_LONGEST_PREFIX = 500
P = TypeVar("P")


def _register_folder(name: str, extensions: set[str]) -> None:
    default = os.path.join(folder_paths.models_dir, name)
    folder_paths.add_model_folder_path(name, default, is_default=True)
    paths, _ = folder_paths.folder_names_and_paths[name]
    folder_paths.folder_names_and_paths[name] = (paths, extensions)


_register_folder(FOLDER, {".safetensors"})
_register_folder(CLIP_FOLDER, {".safetensors", ".bin"})


def checkpoints(*, folders_only: bool = False) -> dict[str, Path]:
    """The embedded ones, then checkpoints' folders and .safetensors files of the model folder."""
    return {name: path for name, path in EMBEDDED.items() if path.is_dir()} | {
        name: path
        for name, path in _entries().items()
        if (path.suffix == ".safetensors" and not folders_only) or is_a(is_checkpoint, path)
    }


def image_tokenizers() -> dict[str, Path | None]:
    """``auto`` for none, then what an image tokenizer may be stored as in the model folder."""
    tokenizers = image_tokenizer_folders()
    return {"auto": None} | {
        name: path
        for name, path in _entries().items()
        if path.suffix in (".safetensors", ".bin") or path.name in tokenizers
    }


def clips() -> dict[str, Path]:
    """``demo``, then folders of ``models/open_clip`` that hold a CLIP."""
    folders = {"demo": DEMO_CLIP}
    for root in map(Path, folder_paths.get_folder_paths(CLIP_FOLDER)):
        for folder in paths_in(root):
            if is_a(is_clip, folder):
                folders.setdefault(folder.name, folder)
    return folders


def _entries() -> dict[str, Path]:
    """Files and folders by name, two levels deep, but for what is inside a checkpoint's folder."""
    entries: dict[str, Path] = {}

    def visit(folder: Path, root: Path, depth: int) -> None:
        for path in paths_in(folder):
            if path.name.startswith("."):  # a download that is not complete
                continue
            entries.setdefault(path.relative_to(root).as_posix(), path)
            if depth and is_a(Path.is_dir, path) and not is_a(holds_model, path):
                visit(path, root, depth - 1)

    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        visit(root, root, 1)
    return entries


def paths_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Sorted; nothing where it may not be read, is gone by now, or cannot be called so."""
    with suppress(OSError, ValueError):
        return sorted(folder.glob(pattern))
    return []


def folders_and_files(folder: Path, endings: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Folders in ``folder``, and files with one of ``endings``, that are not hidden; nothing where
    it may not be read, or is gone by now."""
    folders, files = [], []
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_a(os.DirEntry.is_dir, entry):
                folders.append(folder / entry.name)
            elif entry.name.lower().endswith(endings):
                files.append(folder / entry.name)
    return folders, files


def is_a(kind: Callable[[Any], object], path: Path | os.DirEntry[str]) -> bool:
    """Whether ``path`` is of a kind; not where it may not be read, or is gone by now."""
    with suppress(OSError, ValueError):
        return bool(kind(path))
    return False


def listed(name: str, paths: Mapping[str, P], folder: str = FOLDER) -> P:
    """The path that a widget's value names. Raises ``CheckpointError`` for one that is gone."""
    if name not in paths:
        raise CheckpointError(not_listed(name, folder_paths.get_folder_paths(folder)[0]))
    return paths[name]


def not_listed(name: str, folder: str) -> str:
    return sentence(f"{shown(name)} is not in {folder}: put it there, then refresh ComfyUI's page.")


def checkpoint_paths(checkpoint: str, image_tokenizer: str) -> tuple[Path, Path | None]:
    """No image tokenizer for ``auto``. Raises ``CheckpointError``."""
    return listed(checkpoint, checkpoints()), listed(image_tokenizer, image_tokenizers())


def fingerprint(paths: Callable[[], Iterable[Path | None]]) -> list[FileState]:
    """Of the files and folders that ``paths`` gives; nothing where it finds none, since the node
    says why when it runs."""
    try:
        return file_states(_left_if_interrupted(paths()))
    except (InputError, OSError):
        return []


def _left_if_interrupted(paths: Iterable[Path | None]) -> Iterator[Path]:
    for path in paths:
        leave_if_interrupted()
        if path:
            yield path


def file_states(paths: Iterable[Path]) -> list[FileState]:
    """Of the files ``paths`` and those in the folders ``paths``; nothing for what is not there."""
    states = []
    for file in (file for path in paths for file in (path, *paths_in(path, "**/*"))):
        try:
            stat = file.stat()
        except OSError:  # a link to nothing, or gone by now
            continue
        if S_ISREG(stat.st_mode):
            states.append((str(file), stat.st_size, stat.st_mtime_ns))
    return states


def adapter_names() -> list[str]:
    """``none``, then the .safetensors files of ``models/loras``."""
    files = folder_paths.get_filename_list(_ADAPTER_FOLDER)
    return [NO_ADAPTER, *(name for name in files if name.endswith(".safetensors"))]


def adapter_file(name: str) -> Path:
    """Raises ``InputError`` for a name that :func:`adapter_names` does not list."""
    known = name in adapter_names()
    path = folder_paths.get_full_path(_ADAPTER_FOLDER, name) if known else None
    if path is None:
        raise InputError(not_listed(name, folder_paths.get_folder_paths(_ADAPTER_FOLDER)[0]))
    return Path(path)


def adapter_files(name: str) -> tuple[Path, Path]:
    """The adapter's file, and where PEFT's settings would be beside it."""
    file = adapter_file(name)
    return file, file.with_name(PEFT_CONFIG)


def write_numbered(
    write: Callable[[Path], object], prefix: str, ending: str, root: str | None = None
) -> Path:
    """Let ``write`` make a file of :func:`free_output_path`, again with the next number where it
    raises ``AlreadyExists`` since another process took this one meanwhile."""
    taken = None
    while True:
        path = free_output_path(prefix, ending, root)
        try:
            write(path)
        except AlreadyExists:
            if path == taken:  # it cannot be seen in its folder
                raise
            taken = path
        else:
            return path


def free_output_path(prefix: str, ending: str, root: str | None = None) -> Path:
    """A file of the folder ``root``, by default the output folder, that is not there yet;
    ``prefix``: folder and name."""
    checked_text(prefix, "filename_prefix", _LONGEST_PREFIX)
    try:
        plain = os.path.normpath(prefix)  # ComfyUI counts only files that begin with a whole name
        if os.path.basename(plain) in ("", os.curdir, os.pardir):
            raise ValueError("it names no file")
        folder, name, number, *_ = folder_paths.get_save_image_path(
            plain, root or folder_paths.get_output_directory()
        )
        return checked_path(Path(folder) / f"{name}_{number:05}_{ending}", "filename_prefix")
    except InputError:
        raise
    except Exception as error:  # ComfyUI's own refusal of a place outside, or the file system's
        raise InputError(
            f"filename_prefix is {shown(prefix)}; expected a name in the output folder, and "
            f"folders in it ({shortened(str(error).strip().split(chr(10))[0])})."
        ) from None


def token_files() -> list[str]:
    """Files of tokens: of runs that ended early, in the output folder, in the input folder; of each
    the newest first. Those in deeper folders than :func:`free_output_path` makes by default are not
    searched for."""
    names = []
    roots = {
        " [temp]": folder_paths.get_temp_directory(),
        " [output]": folder_paths.get_output_directory(),
        "": folder_paths.get_input_directory(),
    }
    for mark, root in roots.items():
        patterns = (f"*{TOKENS_ENDING}", f"*/*{TOKENS_ENDING}")
        files = [file for pattern in patterns for file in paths_in(Path(root), pattern)]
        times = {name: time for name, _, time in file_states(files)}
        files.sort(key=lambda file: times.get(str(file), 0), reverse=True)
        names += [f"{file.relative_to(root).as_posix()}{mark}" for file in files]
    return names


def token_file(name: str) -> Path:
    """The file of a name as :func:`token_files` gives them, of any depth. Raises ``InputError``."""
    inside, root = folder_paths.annotated_filepath(checked_text(name, "file"))
    root = Path(root or folder_paths.get_input_directory()).absolute()
    file = Path(os.path.normpath(root / inside.strip()))
    if not (file.is_relative_to(root) and file.name.endswith(TOKENS_ENDING) and is_file(file)):
        raise InputError(
            f"{shown(name)} is neither in {folder_paths.get_output_directory()} nor in "
            f"{folder_paths.get_input_directory()}: save tokens again, or choose another file. "
            "Those of runs that ended early are deleted when ComfyUI is closed."
        )
    return file


def new_checkpoint(name: str) -> Path:
    """A file of the model folder that is not there yet. Raises ``InputError``."""
    check_name("name", name)
    path = Path(folder_paths.get_folder_paths(FOLDER)[0]) / f"{name}.safetensors"
    if path.exists():
        raise InputError(f"{path} already exists: give another name, or delete it first.")
    return path


def check_name(what: str, name: str) -> None:
    if not re.fullmatch(r"[\w][\w .-]{0,99}", name) or not is_plain_name(name):
        raise InputError(
            f"{what} is {shown(name)}: give a name of at most 100 letters, digits, spaces, - and "
            "_, without folders, that no operating system reserves."
        )

"""Folders of training runs inside ComfyUI's output folder, by the names that users give."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths

from ...mmp_core import InputError
from .folders import FOLDER

_NUMBERED = "{}_{:05}"


def runs_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / FOLDER / "training"


def run_folder(name: str, resume: bool) -> Path:
    """The newest folder of the runs called ``name`` to resume, else a new one.

    Raises ``InputError`` for a name that cannot be that of a folder.
    """
    if not re.fullmatch(r"[\w][\w .-]*", name) or name.endswith((".", " ")):
        raise InputError(
            f"run_name is {name!r}: give a name of letters, digits, spaces, - and _, without "
            "folders."
        )
    numbers = [0]
    if runs_folder().is_dir():
        pattern = re.compile(re.escape(name) + r"_(\d{5,})")
        matches = (pattern.fullmatch(path.name) for path in runs_folder().iterdir())
        numbers += [int(match[1]) for match in matches if match]
    number = max(numbers) if resume and max(numbers) else max(numbers) + 1
    return runs_folder() / _NUMBERED.format(name, number)

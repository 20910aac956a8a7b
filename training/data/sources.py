"""Where items come from: a folder, a JSONL manifest, a Hugging Face dataset on disk."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ...mmp_core.errors import InputError
from ...mmp_core.image.pictures import load_image
from .items import Draft, Item, Picture, checked_picture, natural_order, wanted_text

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FIELDS = ("image", "instruction", "think", "target")
"""Keys of a manifest, columns of a Hugging Face dataset."""

_OTHER_PICTURES = (".avif", ".bmp", ".gif", ".heic", ".jfif", ".jxl", ".tif", ".tiff")
_SAVED, _SAVED_SPLITS = ("dataset_info.json", "state.json"), "dataset_dict.json"


def folder_drafts(folder: Path) -> list[Draft]:
    """Items of ``name.txt`` with ``name.png`` (or .jpg, .jpeg, .webp), ``name.think.txt`` and
    ``name.target.png``; without ``name.png``, one to generate. Hidden files, other endings and
    subfolders are left out."""
    groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in _listed(folder):
        if file.is_file() and (role := _role(file)):
            name = file.stem
            if role in ("think", "target"):
                name = name[: -len(role) - 1]
            groups[name][role].append(file)
    return [
        Draft(name, partial(_folder_item, name, dict(groups[name])))
        for name in sorted(groups, key=natural_order)
    ]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror or error}).") from None


def _role(file: Path) -> str | None:
    """What ``file`` is of its item: "image", "instruction", "think", "target", or "other", a
    picture in a format that is not read."""
    ending, inner = file.suffix.lower(), Path(file.stem).suffix.lower()
    if ending == ".txt":
        return "think" if inner == ".think" else "instruction"
    if ending in PICTURES:
        return "target" if inner == ".target" else "image"
    return "other" if ending in _OTHER_PICTURES else None


def _folder_item(name: str, files: dict[str, list[Path]]) -> Item:
    for role, own in files.items():
        if role == "other":
            raise InputError(f"{own[0].name} is not read: save it as {_any(PICTURES)}.")
        if len(own) > 1:
            raise InputError(f"it has both {own[0].name} and {own[1].name}: keep one.")
    found = {role: own[0] for role, own in files.items()}
    if "instruction" not in found:
        there = found.get("image") or next(iter(found.values()))
        raise InputError(f"{there.name} has no {name}.txt beside it: write the instruction there.")
    instruction = _text(found["instruction"])
    return Item(
        name,
        wanted_text(instruction, f"{name}.txt is empty: write the instruction into it."),
        think=_text(found["think"]) or None if "think" in found else None,
        image=_file_picture(found.get("image")),
        target=_file_picture(found.get("target")),
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InputError(f"{file.name} is not UTF-8: save it as UTF-8 text.") from None
    except OSError as error:
        raise InputError(f"{file.name} cannot be read ({error.strerror or error}).") from None


def _file_picture(file: Path | None) -> Picture | None:
    if file is None:
        return None
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file.name} cannot be read ({error.strerror or error}).") from None
    return checked_picture(file.name, content, partial(load_image, file))


def manifest_drafts(manifest: Path) -> list[Draft]:
    """An item per line, ``{"image": …, "instruction": …, "think": …, "target": …}`` of which only
    the instruction must be there. Paths are relative to the manifest. Empty lines are left out."""
    return [
        Draft(f"line {number}", partial(_manifest_item, manifest.parent, number, line))
        for number, line in _lines(manifest)
    ]


def _lines(manifest: Path) -> Iterator[tuple[int, str]]:
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{manifest} cannot be read ({error}): save it as UTF-8 text.") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _manifest_item(folder: Path, number: int, line: str) -> Item:
    fields = _fields(line)
    files = {key: folder / fields[key] for key in ("image", "target") if fields.get(key)}
    for key, file in files.items():
        if not file.is_file():
            raise InputError(f"{key} is {fields[key]!r}, which is not there.")
        if file.suffix.lower() not in PICTURES:
            raise InputError(f"{key} is {fields[key]!r}: expected {_any(PICTURES)}.")
    return Item(
        f"line {number}",
        wanted_text(fields.get("instruction"), "it has no instruction."),
        think=(fields.get("think") or "").strip() or None,
        image=_file_picture(files.get("image")),
        target=_file_picture(files.get("target")),
    )


def _fields(line: str) -> dict[str, str]:
    """Of one line, those that are not null."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is no JSON ({error}).") from None
    if not isinstance(fields, dict):
        raise InputError("it is no JSON object: expected {…}.")
    if unknown := fields.keys() - set(FIELDS):
        raise InputError(f"it has the unknown {_any(sorted(unknown))}: expected {_any(FIELDS)}.")
    for key, value in fields.items():
        if value is not None and not isinstance(value, str):
            raise InputError(f"its {key} is no string.")
    return {key: value for key, value in fields.items() if value is not None}


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of Hugging Face's datasets wrote ``folder``."""
    whole = all((folder / name).is_file() for name in _SAVED)
    return whole or (folder / _SAVED_SPLITS).is_file()


def saved_drafts(folder: Path) -> list[Draft]:
    """An item per row; columns as in a manifest, pictures of the type ``Image``. Other columns are
    left out. Nothing is downloaded and no code of the dataset is run."""
    if (folder / _SAVED_SPLITS).is_file():
        splits = [path.name for path in _listed(folder) if path.is_dir()]
        raise InputError(f"{folder} holds several splits: give the folder of one, {_any(splits)}.")
    datasets = _import_datasets()
    try:
        rows = datasets.load_from_disk(str(folder))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{folder} cannot be read as a dataset ({reason}): save it again."
        ) from error
    rows = rows.select_columns([name for name in rows.column_names if name in FIELDS])
    _check_columns(folder, rows.features, datasets)
    for name in {"image", "target"} & set(rows.column_names):
        rows = rows.cast_column(name, datasets.Image(decode=False))
    return [Draft(f"row {i}", partial(_row_item, rows, i)) for i in range(len(rows))]


def _check_columns(folder: Path, features: dict[str, Any], datasets: Any) -> None:
    if "instruction" not in features:
        raise InputError(
            f"{folder} has no column instruction: rename its columns to {_any(FIELDS)}; only the "
            "instruction must be there."
        )
    for name, feature in features.items():
        is_image = isinstance(feature, datasets.Image)
        if name in ("image", "target") and not is_image:
            raise InputError(
                f"The column {name} of {folder} holds no pictures: cast it to datasets.Image()."
            )
        if name in ("instruction", "think") and getattr(feature, "dtype", None) not in (
            "string",
            "large_string",
        ):
            raise InputError(f"The column {name} of {folder} holds no text: cast it to a string.")


def _row_item(rows: Any, index: int) -> Item:
    row = rows[index]
    return Item(
        f"row {index}",
        wanted_text(row["instruction"], "it has no instruction."),
        think=(row.get("think") or "").strip() or None,
        image=_row_picture(rows, row, index, "image"),
        target=_row_picture(rows, row, index, "target"),
    )


def _row_picture(rows: Any, row: dict[str, Any], index: int, column: str) -> Picture | None:
    if row.get(column) is None:
        return None
    return checked_picture(
        f"its {column}", _content(row[column]), partial(_read_cell, rows, index, column)
    )


def _content(cell: dict[str, Any]) -> bytes:
    """The bytes of a picture, which may lie in a file of its own."""
    if cell.get("bytes"):
        return cell["bytes"]
    try:
        return Path(cell["path"]).read_bytes()
    except OSError as error:
        raise InputError(f"{cell['path']} cannot be read ({error.strerror or error}).") from None


def _read_cell(rows: Any, index: int, column: str) -> Image.Image:
    return load_image(Image.open(BytesIO(_content(rows[index][column]))))


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"Datasets that Hugging Face's library saved need it, and it cannot be imported "
            f'({error}): run "{sys.executable}" -m pip install datasets, then start again.'
        ) from error
    return datasets


def files_of(path: Path) -> list[Path]:
    """The files that a dataset at ``path`` may read, sorted; of a manifest, those it names."""
    if path.is_dir():
        return [file for file in _listed(path) if file.is_file()]
    named = set()
    for _, line in _lines(path):
        try:
            fields = _fields(line)
        except InputError:  # named when the dataset is opened
            continue
        named |= {path.parent / fields[key] for key in ("image", "target") if key in fields}
    return [path, *sorted(file for file in named if file.is_file())]


def _any(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"

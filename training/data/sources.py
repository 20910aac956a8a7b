"""Where items come from: a folder, a JSONL manifest, a Hugging Face dataset on disk."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ...mmp_core.errors import InputError
from ...mmp_core.files import leads_out
from ...mmp_core.image.files import load_image
from ...mmp_core.outside import parsed_json, read_text
from .items import Item, Picture, UnreadItem, checked_picture, natural_order, wanted_text

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FIELDS = ("image", "instruction", "think", "target")
"""Keys of a manifest, columns of a Hugging Face dataset."""

_OTHER_PICTURES = (".avif", ".bmp", ".gif", ".heic", ".jfif", ".jxl", ".tif", ".tiff")
_TEXT_BYTES, _MANIFEST_BYTES = 2**18, 2**28
_SAVED, _SAVED_SPLITS = ("dataset_info.json", "state.json"), "dataset_dict.json"


def folder_items(folder: Path) -> list[UnreadItem]:
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
        UnreadItem(name, partial(_folder_item, name, dict(groups[name])))
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


def _folder_item(name: str, groups: Mapping[str, list[Path]]) -> Item:
    for role, files in groups.items():
        if role == "other":
            raise InputError(f"{files[0].name} is not read: save it as {_any(PICTURES)}.")
        if len(files) > 1:
            raise InputError(f"it has both {files[0].name} and {files[1].name}: keep one.")
    roles = {role: files[0] for role, files in groups.items()}
    if "instruction" not in roles:
        other = roles.get("image") or next(iter(roles.values()))
        raise InputError(f"{other.name} has no {name}.txt beside it: write the instruction there.")
    return Item(
        name,
        wanted_text(
            _text(roles["instruction"]), f"{name}.txt is empty: write the instruction into it."
        ),
        think=_text(roles["think"]) or None if "think" in roles else None,
        image=_file_picture(roles.get("image")),
        target=_file_picture(roles.get("target")),
    )


def _text(file: Path) -> str:
    try:
        return read_text(file, _TEXT_BYTES, InputError, file.name).strip()
    except FileNotFoundError:
        raise InputError(f"{file.name} is not there any more.") from None


def _file_picture(file: Path | None) -> Picture | None:
    if file is None:
        return None
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file.name} cannot be read ({error.strerror or error}).") from None
    return checked_picture(file.name, content, partial(load_image, file))


def manifest_items(manifest: Path) -> list[UnreadItem]:
    """An item per line, ``{"image": …, "instruction": …, "think": …, "target": …}`` of which only
    the instruction must be there. Pictures lie in the manifest's folder or below it, and are named
    from there. Empty lines are left out."""
    return [
        UnreadItem(f"line {number}", partial(_manifest_item, manifest.parent, number, line))
        for number, line in _lines(manifest)
    ]


def _lines(manifest: Path) -> Iterator[tuple[int, str]]:
    try:
        text = read_text(manifest, _MANIFEST_BYTES, InputError)
    except FileNotFoundError:
        raise InputError(f"{manifest} is not there any more.") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _manifest_item(folder: Path, number: int, line: str) -> Item:
    fields = _fields(line)
    files = _named_files(folder, fields)
    for key, file in files.items():
        if not _is_file(file):
            raise InputError(f"{key} is {fields[key]!r}, which is not there.")
        if file.suffix.lower() not in PICTURES:
            raise InputError(f"{key} is {fields[key]!r}: expected {_any(PICTURES)}.")
    return _item(
        f"line {number}", fields, {key: _file_picture(file) for key, file in files.items()}
    )


def _item(name: str, fields: Mapping[str, Any], pictures: Mapping[str, Picture | None]) -> Item:
    return Item(
        name,
        wanted_text(fields.get("instruction"), "it has no instruction."),
        think=(fields.get("think") or "").strip() or None,
        image=pictures.get("image"),
        target=pictures.get("target"),
    )


def _fields(line: str) -> dict[str, str]:
    """The fields of one line that are not null."""
    if len(line) > _TEXT_BYTES:
        raise InputError(f"it has {len(line)} characters; expected at most {_TEXT_BYTES}.")
    fields = parsed_json(line, "it", InputError)
    if unknown := fields.keys() - set(FIELDS):
        raise InputError(f"it has the unknown {_any(sorted(unknown))}: expected {_any(FIELDS)}.")
    for key, value in fields.items():
        if value is not None and not isinstance(value, str):
            raise InputError(f"its {key} is no string.")
    return {key: value for key, value in fields.items() if value is not None}


def _named_files(folder: Path, fields: Mapping[str, str]) -> dict[str, Path]:
    """The pictures that a manifest in ``folder`` names, whether they are there or not.

    Links are followed, since only the owner of the folder can have made them. Raises
    ``InputError`` for a name that leads out of the folder, on any system.
    """
    files = {}
    for key in ("image", "target"):
        if name := fields.get(key):
            if leads_out(name):
                raise InputError(
                    f"{key} is {name!r}, which leads out of the manifest's folder: put the picture "
                    "there and give its name."
                )
            files[key] = folder / name
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or one with NUL
        return False


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of Hugging Face's datasets wrote ``folder``."""
    whole = all((folder / name).is_file() for name in _SAVED)
    return whole or (folder / _SAVED_SPLITS).is_file()


def saved_items(folder: Path) -> list[UnreadItem]:
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
    return [UnreadItem(f"row {i}", partial(_row_item, rows, i)) for i in range(len(rows))]


def _check_columns(folder: Path, features: Mapping[str, Any], datasets: Any) -> None:
    if "instruction" not in features:
        raise InputError(
            f"{folder} has no column instruction: rename its columns to {_any(FIELDS)}; only the "
            "instruction must be there."
        )
    for name, feature in features.items():
        if name in ("image", "target") and not isinstance(feature, datasets.Image):
            raise InputError(
                f"The column {name} of {folder} holds no pictures: cast it to datasets.Image()."
            )
        kind = getattr(feature, "dtype", None)
        if name in ("instruction", "think") and kind not in ("string", "large_string"):
            raise InputError(f"The column {name} of {folder} holds no text: cast it to a string.")


def _row_item(rows: Any, index: int) -> Item:
    row = rows[index]
    pictures = {
        name: checked_picture(
            f"its {name}", _content(name, row[name]), partial(_read_cell, rows, index, name)
        )
        for name in ("image", "target")
        if row.get(name) is not None
    }
    return _item(f"row {index}", row, pictures)


def _content(column: str, cell: Mapping[str, Any]) -> bytes:
    """The bytes of a picture, which ``save_to_disk`` puts into the dataset itself."""
    if not cell.get("bytes"):
        raise InputError(
            f"its {column} holds no picture, or only the name of a file: save the dataset again "
            "where its pictures are."
        )
    return cell["bytes"]


def _read_cell(rows: Any, index: int, column: str) -> Image.Image:
    return load_image(BytesIO(_content(column, rows[index][column])))


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
    named: set[Path] = set()
    for _, line in _lines(path):
        try:
            named.update(_named_files(path.parent, _fields(line)).values())
        except InputError:  # said when the dataset is opened
            continue
    return [path, *sorted(file for file in named if _is_file(file))]


def _any(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def is_manifest(path: Path) -> bool:
    return path.suffix.lower() == ".jsonl" and path.is_file()


def holds_instructions(path: Path) -> bool:
    return path.is_dir() and any(file.suffix.lower() == ".txt" for file in _listed(path))


class DatasetKind(NamedTuple):
    """A form that datasets have on disk.

    ``fits``: whether a path is opened as one. ``offered``: whether a list of datasets names it.
    ``items``: what it holds, not yet read.
    """

    fits: Callable[[Path], bool]
    offered: Callable[[Path], bool]
    items: Callable[[Path], list[UnreadItem]]


KINDS = (
    DatasetKind(is_saved_dataset, is_saved_dataset, saved_items),
    DatasetKind(is_manifest, is_manifest, manifest_items),
    DatasetKind(Path.is_dir, holds_instructions, folder_items),
)
"""The first that fits is meant."""

"""Where items come from: a folder, a JSONL manifest, a Hugging Face dataset on disk."""

from __future__ import annotations

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from ...mmp_core.errors import InputError, sentence
from ...mmp_core.files import is_file, leads_out
from ...mmp_core.image.files import opened_picture
from ...mmp_core.outside import check_bytes, parsed_json, read_text
from .fields import (
    FIELDS,
    PICTURE_FIELDS,
    PICTURES,
    any_of,
    endings_in,
    item_of,
    listed,
    read_field,
)
from .items import (
    MOST_ITEMS,
    Counted,
    Item,
    Picture,
    UnreadItem,
    checked_picture,
    counted,
    natural_order,
    wanted_text,
)
from .tables import is_parquet, is_saved_dataset, parquet_items, saved_items

_OTHERS = (".parquet", ".avif", ".bmp", ".gif", ".heic", ".jfif", ".jxl", ".tif", ".tiff")
_UNCLEAR = "unclear: "

_TEXT_BYTES, _LINE_BYTES, _MANIFEST_BYTES, _WIDE_BYTES = 2**18, 2**20, 2**28, 2**25
_PICTURE_BYTES, _PIXEL_BYTES = 2**26, 8
"""That a picture's file may have beside its pixels, and for each of them."""

Files = Mapping[str, list[Path]]
"""The files of one item by what they are of it."""


def folder_items(folder: Path, callback: Counted | None = None) -> list[UnreadItem]:
    """Items of ``name.txt`` with ``name.png`` (or .jpg, .jpeg, .webp), ``name.think.txt``,
    ``name.target.png`` and ``name.mask.png``; without ``name.png``, one to generate.

    Names that differ only by case or by their Unicode form belong together, unless that leaves
    open what belongs to what. Hidden files, other endings and subfolders are left out.
    """
    groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in counted(listed(folder), callback):
        if not file.is_dir() and (role := _role(file)):
            name = normalize("NFC", file.stem)
            if role in ("think", "target", "mask"):
                name = name[: -len(role) - 1]
            groups[name][role].append(file)
    items = _alike_joined(groups, callback)
    order = [(natural_order(name), name) for name in counted(items, callback)]
    return [UnreadItem(name, partial(_folder_item, name, items[name])) for _, name in sorted(order)]


def _alike_joined(groups: Mapping[str, Files], callback: Counted | None) -> dict[str, Files]:
    """``groups`` by their names, those as one whose names differ by case alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in counted(groups, callback):
        alike[normalize("NFC", name.casefold())].append(name)
    joined: dict[str, Files] = {}
    for names in counted(alike.values(), callback):
        roles = [role for name in names for role in groups[name]]
        if len(set(roles)) == len(roles):
            named = next((name for name in names if "instruction" in groups[name]), names[0])
            joined[named] = {role: files for name in names for role, files in groups[name].items()}
            continue
        lost = any("instruction" not in groups[name] for name in names)
        for name in names:  # a text alone would be trained on without its picture
            alone = lost and "image" not in groups[name] and "target" not in groups[name]
            other = next(n for n in names if n != name)
            joined[name] = {**groups[name], f"{_UNCLEAR}{other}": []} if alone else groups[name]
    return joined


def _role(file: Path) -> str | None:
    """What ``file`` is of its item: "image", "instruction", "think", "target", "mask", or "other",
    what is not read."""
    ending, inner = file.suffix.lower(), Path(file.stem).suffix.lower()
    if ending == ".txt":
        return "think" if inner == ".think" else "instruction"
    if ending in PICTURES:
        return {".target": "target", ".mask": "mask"}.get(inner, "image")
    return "other" if ending in _OTHERS else None


def _folder_item(name: str, groups: Files) -> Item:
    for role, files in groups.items():
        if role.startswith(_UNCLEAR):
            raise InputError(
                f"its name and {role.removeprefix(_UNCLEAR)} differ by case alone: give what "
                "belongs together the very same name."
            )
        for file in files:
            if not file.is_file():
                if file.is_symlink():
                    raise InputError(
                        f"{file.name} is a link to nothing: put the file itself there, or remove "
                        "it."
                    )
                raise InputError(
                    f"{file.name} is not a regular file: put the file itself there, or remove it."
                )
        if files[0].suffix.lower() == ".parquet":
            raise InputError(
                f"{files[0].name} is not read beside other items: put it into a folder of its own."
            )
        if role == "other":
            raise InputError(f"{files[0].name} is not read: save it as {any_of(PICTURES)}.")
        if len(files) > 1:
            raise InputError(f"it has both {files[0].name} and {files[1].name}: keep one.")
    roles = {role: files[0] for role, files in groups.items()}
    if "instruction" not in roles:
        other = roles.get("image") or next(iter(roles.values()))
        raise InputError(f"{other.name} has no {name}.txt beside it: write the instruction there.")
    return Item(
        name,
        wanted_text(
            _text(roles["instruction"]),
            sentence(f"{name}.txt is empty: write the instruction into it."),
        ),
        think=_text(roles["think"]) or None if "think" in roles else None,
        image=_file_picture(roles.get("image"), "image"),
        target=_file_picture(roles.get("target"), "target"),
        mask=_file_picture(roles.get("mask"), "mask"),
    )


def _text(file: Path) -> str:
    try:
        return read_text(file, _TEXT_BYTES, InputError, file.name).strip()
    except FileNotFoundError:
        raise InputError(f"{file.name} no longer exists.") from None


def _file_picture(file: Path | None, name: str) -> Picture | None:
    if file is None:
        return None
    try:
        check_bytes(file)
        with file.open("rb") as stream, opened_picture(stream, file.name) as opened:
            pixels = opened.width * opened.height
        check_bytes(file, _PICTURE_BYTES + _PIXEL_BYTES * pixels)
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file.name} cannot be read ({error.strerror or error}).") from None
    return checked_picture(file.name, content, partial(read_field, file, name))


def manifest_items(manifest: Path, callback: Counted | None = None) -> list[UnreadItem]:
    """An item per line, ``{"image": …, "instruction": …, "think": …, "target": …}`` of which only
    the instruction must be there. Pictures lie in the manifest's folder or below it, and are named
    from there. Empty lines are left out."""
    return [
        UnreadItem(f"line {number}", partial(_manifest_item, manifest.parent, number, line))
        for number, line in _lines(manifest, callback)
    ]


def _lines(manifest: Path, callback: Counted | None) -> Iterator[tuple[int, bytes]]:
    """Those that are not empty, in UTF-8: as text they would take up to four times as much."""
    try:
        check_bytes(manifest, _MANIFEST_BYTES)
        content = manifest.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{manifest} no longer exists.") from None
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):  # of UTF-32, too
        content = read_text(manifest, _WIDE_BYTES, InputError).encode()
    if (count := content.count(b"\n")) > MOST_ITEMS:
        raise InputError(f"{manifest} has {count} lines; expected at most {MOST_ITEMS}.")
    lines = content.removeprefix(BOM_UTF8).split(b"\n")
    del content
    for number, line in enumerate(counted(lines, callback), start=1):
        if line.strip():
            yield number, line


def _manifest_item(folder: Path, number: int, line: bytes) -> Item:
    fields = _fields(line)
    files = _named_files(folder, fields)
    for key, file in files.items():
        if not is_file(file):
            raise InputError(f"{key} is {fields[key]!r}, which is not there.")
        if file.suffix.lower() not in PICTURES:
            raise InputError(f"{key} is {fields[key]!r}: expected {any_of(PICTURES)}.")
    return item_of(
        f"line {number}", fields, {key: _file_picture(file, key) for key, file in files.items()}
    )


def _fields(line: bytes) -> dict[str, str]:
    """The fields of one line that are not null."""
    name = "it"
    if len(line) > _LINE_BYTES:
        raise InputError(f"{name} has {len(line)} bytes; expected at most {_LINE_BYTES}.")
    try:
        text = line.decode()
    except UnicodeDecodeError as problem:
        raise InputError(
            f"{name} is not UTF-8 and cannot be read ({problem}): save it again."
        ) from None
    fields = parsed_json(text, name, InputError)
    if unknown := fields.keys() - set(FIELDS):
        raise InputError(
            f"it has the unknown {_readable(any_of(sorted(unknown)))}: expected {any_of(FIELDS)}."
        )
    for key, value in fields.items():
        if value is not None and not isinstance(value, str):
            raise InputError(f"its {key} is not a string.")
    return {key: value for key, value in fields.items() if value is not None}


def _readable(text: str) -> str:
    """With what is no text, half an emoji, written as its number."""
    return text.encode(errors="backslashreplace").decode()


def _named_files(folder: Path, fields: Mapping[str, str]) -> dict[str, Path]:
    """The pictures that a manifest in ``folder`` names, whether they are there or not.

    Links are followed, since only the owner of the folder can have made them. Raises
    ``InputError`` for a name that leads out of the folder, on any system.
    """
    files = {}
    for key in PICTURE_FIELDS:
        if (name := fields.get(key)) is not None:
            if leads_out(name):
                raise InputError(
                    f"{key} is {name!r}, which leads out of the manifest's folder: put the picture "
                    "there and give its name."
                )
            files[key] = folder / name
    return files


def files_of(path: Path, callback: Counted | None = None) -> list[Path]:
    """The files that a dataset at ``path`` may read, sorted; of a manifest, those it names.
    ``callback(done, total)`` counts them now and then."""
    if path.is_dir():
        return [file for file in counted(listed(path), callback) if file.is_file()]
    if is_parquet(path):
        return [path]
    named: set[Path] = set()
    for _, line in _lines(path, callback):
        try:
            named.update(_named_files(path.parent, _fields(line)).values())
        except InputError:  # said when the dataset is opened
            continue
    there = (file for file in counted(named, callback) if is_file(file))
    return [path, *sorted(there, key=str)]  # paths take four times as long to compare


FILES = (".jsonl", ".parquet")
"""Endings of files that are datasets."""


def is_manifest(path: Path) -> bool:
    return path.suffix.lower() == ".jsonl" and path.is_file()


def holds_instructions(path: Path) -> bool:
    return path.is_dir() and ".txt" in endings_in(path)


class DatasetKind(NamedTuple):
    """A form that datasets have on disk.

    ``fits``: whether a path is opened as one. ``offered``: whether a list of datasets names it.
    ``items``: what it holds, not yet read, counted now and then.
    """

    fits: Callable[[Path], bool]
    offered: Callable[[Path], bool]
    items: Callable[[Path, Counted | None], list[UnreadItem]]


KINDS = (
    DatasetKind(is_saved_dataset, is_saved_dataset, saved_items),
    DatasetKind(is_manifest, is_manifest, manifest_items),
    DatasetKind(is_parquet, is_parquet, parquet_items),
    DatasetKind(Path.is_dir, holds_instructions, folder_items),
)
"""The first that fits is meant."""

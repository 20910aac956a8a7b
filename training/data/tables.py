"""Items in tables: datasets that Hugging Face's library saved, and files of parquet."""

from __future__ import annotations

import os
import struct
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from ...mmp_core.errors import InputError, sentence, shortened, shown
from ...mmp_core.files import accessing, is_plain_name
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
from .items import MOST_ITEMS, Counted, Item, UnreadItem, checked_picture, counted

_SAVED, _SAVED_SPLITS = ("dataset_info.json", "state.json"), "dataset_dict.json"
_ALWAYS_UNPACKED, _MOST_GROWTH = 2**28, 200
"""Bytes that a file of parquet may always unpack to, and how many times its own size it may."""
_ALWAYS_REPEATED, _ROWS_AT_ONCE = 2**30, 64
"""The same where texts and bytes that are the same count each time."""
_DICTIONARY, _BATCH = 2, 3
"""Kinds of Arrow's messages that hold values."""


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of Hugging Face's datasets wrote ``folder``."""
    whole = all((folder / name).is_file() for name in _SAVED)
    return whole or (folder / _SAVED_SPLITS).is_file()


def saved_items(folder: Path, callback: Counted | None = None) -> list[UnreadItem]:
    """An item per row; columns as in a manifest, pictures of the type ``Image``. Other columns are
    left out. Nothing is downloaded and no code of the dataset is run."""
    if (folder / _SAVED_SPLITS).is_file():
        splits = [path.name for path in listed(folder) if path.is_dir()]
        if not splits:
            raise InputError(f"{folder} has no folder of a split: save the dataset again.")
        raise InputError(
            f"{folder} holds several splits: give the folder of one, {any_of(splits)}."
        )
    datasets = _import_datasets()
    _check_files(folder)
    try:
        rows = datasets.load_from_disk(str(folder))
        columns = [name for name in rows.column_names if name in FIELDS]
        rows.data.select(columns).validate(full=True)  # places beyond the file are read otherwise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{folder} cannot be read as a dataset ({reason}): save it again."
        ) from error
    _check_count(folder, len(rows))
    rows = rows.with_format(None).select_columns(columns)
    _check_columns(folder, rows.features, datasets)
    for name in {*PICTURE_FIELDS} & set(rows.column_names):
        rows = rows.cast_column(name, datasets.Image(decode=False))
    numbers = counted(range(len(rows)), callback)
    return [UnreadItem(f"row {i}", partial(_row_item, rows, i)) for i in numbers]


def _check_files(folder: Path) -> None:
    """Refuse a dataset whose list of files leads elsewhere, or with a file that is compressed,
    which its library never writes, and which may unpack to any size as it is opened."""
    state = folder / "state.json"
    try:
        files = parsed_json(read_text(state), state.name).get("_data_files")
    except InputError as error:
        raise InputError(f"{folder} cannot be read as a dataset: {error} Save it again.") from None
    for file in files if isinstance(files, list) else [None]:
        name = file.get("filename") if isinstance(file, dict) else None
        if not isinstance(name, str) or not is_plain_name(name):
            raise InputError(
                f"{folder} cannot be read as a dataset (state.json names the file {shown(name)}): "
                "save it again."
            )
        if (folder / name).exists():
            check_bytes(folder / name)
        if (folder / name).is_file() and _is_compressed(folder / name):
            raise InputError(
                f"{folder} cannot be read as a dataset ({name} is compressed): save it again."
            )


def _is_compressed(file: Path) -> bool:
    """Whether values in a stream of Arrow are, or may be; what Arrow refuses is left to it."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as source:
            messages = pa.ipc.MessageReader.open_stream(source)
            return any(_holds_compressed(bytes(message.metadata)) for message in messages)
    except (struct.error, IndexError):
        return True
    except (pa.ArrowException, OSError):
        return False


def _holds_compressed(message: bytes) -> bool:
    """Whether an Arrow message (a FlatBuffers table, ``format/Message.fbs`` of Arrow) says so of
    its values."""

    def field(table: int, number: int) -> int:
        """Where a table's field is; 0: it has none."""
        names = table - struct.unpack_from("<i", message, table)[0]
        place = 4 + 2 * number
        if place >= struct.unpack_from("<H", message, names)[0]:
            return 0
        offset = struct.unpack_from("<H", message, names + place)[0]
        return offset and table + offset

    def within(place: int) -> int:
        return place + struct.unpack_from("<I", message, place)[0]

    root = within(0)
    kind, header = field(root, 1), field(root, 2)
    batch = message[kind] if kind and header else 0
    if batch not in (_DICTIONARY, _BATCH):
        return False
    table = within(header)
    if batch == _DICTIONARY:
        table = within(field(table, 1))
    return field(table, 3) != 0


def _check_columns(folder: Path, features: Mapping[str, Any], datasets: Any) -> None:
    if "instruction" not in features:
        raise InputError(
            f"{folder} has no column instruction: rename its columns to {any_of(FIELDS)}; only the "
            "instruction must be there."
        )
    for name, feature in features.items():
        if name in PICTURE_FIELDS and not isinstance(feature, datasets.Image):
            raise InputError(
                f"The column {name} of {folder} holds no pictures: cast it to datasets.Image()."
            )
        kind = getattr(feature, "dtype", None)
        if name in ("instruction", "think") and kind not in ("string", "large_string"):
            raise InputError(f"The column {name} of {folder} holds no text: cast it to a string.")


_NAMES = {
    "image": sentence("its image"),
    "target": sentence("its target"),
    "mask": sentence("its mask"),
}


def _row(rows: Any, index: int) -> dict[str, Any]:
    try:
        return rows[index]
    except Exception as error:  # of the format's own, and of text that is not UTF-8
        reason = shortened(str(error) or type(error).__name__)
        raise InputError(f"it cannot be read ({reason}).") from error


def _row_item(rows: Any, index: int) -> Item:
    row = _row(rows, index)
    pictures = {
        name: checked_picture(
            _NAMES[name],
            _content(name, row[name]),
            partial(_read_cell, rows, index, name),
        )
        for name in PICTURE_FIELDS
        if row.get(name) is not None
    }
    return item_of(f"row {index}", row, pictures)


def _content(column: str, cell: Any) -> bytes:
    """The bytes of a picture, which ``save_to_disk`` puts into the dataset itself."""
    if isinstance(cell, bytes):
        cell = {"bytes": cell}
    content = cell.get("bytes") if isinstance(cell, Mapping) else None
    if not isinstance(content, bytes) or not content:
        raise InputError(
            f"its {column} holds no picture, or only the name of a file: save the dataset again "
            "where its pictures are."
        )
    return content


def _read_cell(rows: Any, index: int, column: str) -> Image.Image:
    return read_field(BytesIO(_content(column, _row(rows, index)[column])), column)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"Datasets that Hugging Face's library saved need it, and it cannot be imported "
            f'({error}): run "{sys.executable}" -m pip install datasets, then start again.'
        ) from error
    return datasets


def is_parquet(path: Path) -> bool:
    """A file of parquet, or a folder of such without pictures beside them."""
    if path.is_dir():
        endings = endings_in(path)
        return ".parquet" in endings and not endings & {*PICTURES}
    return path.suffix.lower() == ".parquet" and path.is_file()


class _ParquetRows:
    """``rows[i]``: a row of some tables, one after the other."""

    def __init__(self, tables: Sequence[Any]):
        self._tables = tables
        self._ends = [*accumulate(table.num_rows for table in tables)]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = bisect_right(self._ends, index)
        table = self._tables[place]
        row = index - self._ends[place] + table.num_rows
        return {name: table.column(name)[row].as_py() for name in table.column_names}


def parquet_items(path: Path, callback: Counted | None = None) -> list[UnreadItem]:
    """An item per row of the files, in the order of their names; columns as in a manifest,
    pictures as bytes or as Hugging Face stores them. Other columns are left out."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            f"Files of parquet need pyarrow, which cannot be imported ({error}): run "
            f'"{sys.executable}" -m pip install pyarrow, then start again.'
        ) from error
    files = listed(path) if path.is_dir() else [path]
    files = [file for file in files if file.suffix.lower() == ".parquet"]
    with accessing():
        for file in files:
            check_bytes(file)
    count, tables, growth = 0, [], _Growth(sum(file.stat().st_size for file in files), callback)
    for file in files:
        try:
            with parquet.ParquetFile(file, memory_map=True) as opened:
                names, count = opened.schema_arrow.names, count + opened.metadata.num_rows
                _check_count(path, count)
                columns = _columns(opened.schema_arrow)
                growth.check(opened, columns)
            # texts and bytes that are the same are kept once
            with parquet.ParquetFile(file, memory_map=True, read_dictionary=columns) as opened:
                tables.append(opened.read(columns=columns))
        except InputError:
            raise
        except (ArrowException, ValueError, TypeError, LookupError, OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno:
                reason = os.strerror(error.errno)
                raise InputError(f"{file} cannot be read ({reason}).") from None
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{file} cannot be read as parquet ({reason}): replace it.") from None
        if "instruction" not in names:
            others = any_of(names) if names else "none"
            raise InputError(
                f"{file} has no column instruction, but {others}: rename its columns to "
                f"{any_of(FIELDS)}; only the instruction must be there."
            )
    rows = _ParquetRows(tables)
    numbers = counted(range(len(rows)), callback)
    return [UnreadItem(f"row {i}", partial(_parquet_item, rows, i)) for i in numbers]


def _check_count(path: Path, count: int) -> None:
    if count > MOST_ITEMS:
        raise InputError(f"{path} has {count} rows; expected at most {MOST_ITEMS}.")


def _columns(schema: Any) -> list[str]:
    """Those that are read; of what Hugging Face stores of a picture, its bytes."""
    from pyarrow.types import is_nested, is_struct

    kinds = {field.name: field.type for field in schema if field.name in FIELDS}
    pictures = {name: kind for name, kind in kinds.items() if is_struct(kind)}
    stored = {name for name, kind in pictures.items() if kind.get_field_index("bytes") >= 0}
    for name, kind in kinds.items():
        if is_nested(kind) and name not in stored:
            raise ValueError(f"its column {name} is of {shortened(str(kind))}")
    return [f"{name}.bytes" if name in stored else name for name in kinds]


class _Growth:
    """Of files of ``stored`` bytes together: what they unpack to."""

    def __init__(self, stored: int, callback: Counted | None):
        self._most, self._callback = _MOST_GROWTH * stored, callback
        self._said = self._unpacked = 0

    def check(self, opened: Any, columns: Sequence[str]) -> None:
        """Raise ``ValueError`` where an ``opened`` file says that it unpacks, with those before it,
        to far more than pictures do, or does so: what it says may be false."""
        metadata = opened.metadata
        groups = range(metadata.num_row_groups)
        self._said += sum(metadata.row_group(number).total_byte_size for number in groups)
        if self._said > max(_ALWAYS_UNPACKED, self._most):
            raise ValueError(f"it unpacks to {self._said} bytes")
        for column in columns:  # each alone, since a page may unpack to 2 GiB
            rows = 0
            for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=[column], use_threads=False):
                if self._callback:
                    self._callback(rows, metadata.num_rows)
                rows, self._unpacked = rows + batch.num_rows, self._unpacked + batch.nbytes
                if self._unpacked > max(_ALWAYS_REPEATED, self._most):
                    raise ValueError(f"it unpacks to more than {self._unpacked} bytes")


def _parquet_item(rows: _ParquetRows, index: int) -> Item:
    row = _row(rows, index)
    for name in ("instruction", "think"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise InputError(f"its {name} is not text.")
    return _row_item(rows, index)

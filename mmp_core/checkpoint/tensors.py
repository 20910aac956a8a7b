"""Tensors of safetensors files by name, each read when asked for."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, shown
from ..files import check_utf8, is_plain_name
from ..outside import JSON_BYTES, check_bytes, parsed_json, plain_tensor, read_text
from .pickles import MOST_VALUES, check_pickled

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""torch's dtype by the name that safetensors files give it."""

MOST_TENSORS = 2**16
"""Of a file: many times those of any checkpoint."""

_BLOCK_BYTES = 2**26
_INDEX_BYTES = 2**25
_HEADER_BYTES, _COUNTED_BYTES = 2**25, 2**20
"""Of a header: of a released model it has 0.1 MB, and 90 MB take seconds; shorter ones than the
second are not worth counting in."""
_MARKS = 10
"""Quotation marks that a header has of each tensor; commas are fewer."""
_LONGEST_NAME, _LONGEST_SIDE = 1000, 2**48
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Outline:
    """A tensor without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class SafetensorsFiles(Mapping):
    """Tensors of one or more safetensors files by name, each read when asked for. ``where``:
    {tensor name: file}. ``prefix``: what the files put before each of these names. Raises
    ``CheckpointError`` for files that cannot be read."""

    def __init__(self, where: Mapping[str, Path], prefix: str = ""):
        self._where = dict(where)
        self._prefix = prefix
        self._open: dict[Path, Any] = {}

    @classmethod
    def of(cls, *parts: Path) -> SafetensorsFiles:
        files = cls({})
        files._where = {name: file for file in parts for name in files._handle(file).keys()}
        return files

    @classmethod
    def sharded(cls, index: Path) -> SafetensorsFiles:
        """The shards named by ``model.safetensors.index.json``, all of which must be there."""
        shards = read_json(index, _INDEX_BYTES).get("weight_map")
        if not isinstance(shards, dict) or not 0 < len(shards) <= MOST_TENSORS:
            raise CheckpointError(
                f"{index} has no weight_map of 1 to {MOST_TENSORS} tensors; download it again."
            )
        for shard in shards.values():
            if not is_plain_name(shard) or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"{index} has {shown(shard)} in its weight_map; expected the name of a "
                    ".safetensors file beside it. Download it again."
                )
        missing = sorted({s for s in shards.values() if not (index.parent / s).is_file()})
        if missing:
            raise CheckpointError(
                f"{', '.join(missing)} missing in {index.parent}: download the file(s) named in "
                f"{index.name} there."
            )
        return cls({name: index.parent / shard for name, shard in shards.items()})

    def split(self, prefix: str) -> tuple[SafetensorsFiles, SafetensorsFiles]:
        """The tensors whose names lack ``prefix``; those with it, by the rest of their names."""
        plain = {n: file for n, file in self._where.items() if not n.startswith(prefix)}
        rest = {n[len(prefix) :]: file for n, file in self._where.items() if n not in plain}
        return SafetensorsFiles(plain, self._prefix), SafetensorsFiles(rest, self._prefix + prefix)

    @property
    def files(self) -> list[Path]:
        return sorted(set(self._where.values()))

    def metadata(self, file: Path) -> dict[str, str]:
        """What ``file`` holds beside tensors."""
        return self._handle(file).metadata() or {}

    def outline(self, name: str) -> Outline:
        file = self._where[name]
        try:
            part = self._handle(file).get_slice(self._prefix + name)
            shape = tuple(part.get_shape())
            if max(shape, default=0) > _LONGEST_SIDE or math.prod(shape or (1,)) > _LONGEST_SIDE:
                raise CheckpointError(f"{file} holds {name} of shape {shown(shape)}: replace it.")
            return Outline(DTYPES[part.get_dtype()], shape)
        except SafetensorError as error:
            raise _lacking(file, name, error) from None
        except KeyError as error:
            raise CheckpointError(f"{file} holds {name} as {error}, which is unknown.") from None

    def check_kinds(self) -> None:
        """Raises ``CheckpointError`` where one of the files holds a tensor of a kind that is
        unknown, whether it is asked for or not: a host reads files whole."""
        for file in self.files:
            handle = self._handle(file)
            for name in handle.keys():
                if (kind := handle.get_slice(name).get_dtype()) not in DTYPES:
                    raise CheckpointError(f"{file} holds {name} as {kind!r}, which is unknown.")

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The rows of tensor ``name`` in order, 64 MB at a time; in memory only while used."""
        outline, file = self.outline(name), self._where[name]
        rows = outline.shape[0] if outline.shape else 1
        step = max(1, rows * _BLOCK_BYTES // max(1, outline.bytes))
        for start in range(0, rows, step):
            with _opened(file) as handle:  # a file that stays open keeps what was read in memory
                part = handle.get_slice(self._prefix + name)
                yield part[start : start + step] if outline.shape else part[...]

    def read_by(self, reader: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """All tensors, from files that ``reader`` gives as {name in the file: tensor}."""
        parts = {file: reader(file) for file in self.files}
        return {name: parts[file][self._prefix + name] for name, file in self._where.items()}

    def __getitem__(self, name: str) -> Tensor:
        self.outline(name)
        file = self._where[name]
        try:
            return self._handle(file).get_tensor(self._prefix + name)
        except SafetensorError as error:
            raise _lacking(file, name, error) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = _opened(file)
        return self._open[file]


def outline_of(tensors: Mapping[str, Tensor], name: str) -> Outline:
    """That of one of ``tensors``, without reading it from a file."""
    if isinstance(tensors, SafetensorsFiles):
        return tensors.outline(name)
    return Outline(tensors[name].dtype, tuple(tensors[name].shape))


def blocks_of(tensors: Mapping[str, Tensor], name: str) -> Iterator[Tensor]:
    """One of ``tensors`` in blocks of rows, or whole where it is in memory."""
    if isinstance(tensors, SafetensorsFiles):
        return tensors.blocks(name)
    return iter([tensors[name]])


def open_safetensors(file: Path, most: int = MOST_TENSORS) -> Any:
    """safetensors' reader of ``file``, of at most ``most`` tensors: it takes a minute for a
    million. Raises ``OSError``, ``SafetensorError``, ``RuntimeError`` or ``MemoryError``."""
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(file))
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(min(length, _HEADER_BYTES + 1))
    if len(header) > _HEADER_BYTES:
        raise OSError(f"its header has more than {_HEADER_BYTES >> 20} MB")
    if len(header) > _COUNTED_BYTES:
        _check_header(header, most)
    opened = safe_open(file, framework="pt")
    for name in opened.keys():
        if len(name) > _LONGEST_NAME:
            raise OSError(f"it has a tensor whose name has {len(name)} characters")
    return opened


def _check_header(header: bytes, most: int) -> None:
    """Raise ``OSError`` for a header of more than ``most`` tensors, or of as many notes, fields or
    sides of shapes as would not fit into memory."""
    plain = header.replace(b"\\\\", b"").replace(b'\\"', b"")
    fits = plain.count(b'"') <= _MARKS * most
    if not fits or sum(part.count(b",") for part in plain.split(b'"')[::2]) > _MARKS * most:
        raise OSError(f"its header has more than {most} tensors, or takes as much")


def read_pickled(file: Path, device: torch.device | str = "cpu", *, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote to ``file``, of plain types and tensors alone. Raises whatever
    ``torch.load`` raises, which is anything, and ``OSError`` as :func:`check_pickled`."""
    check_bytes(file)
    check_pickled(file)
    content = torch.load(file, map_location=device, weights_only=True, mmap=mmap)
    _check_values(content)
    return content


def _check_values(content: Any) -> None:
    """Raise ``OSError`` where ``content`` holds more than a file could, since it holds the same
    again and again: to compare or to show it would never end."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            value = [*value, *value.values()]
        if isinstance(value, list | tuple | set):
            count += len(value)
            waiting += value
        if count > MOST_VALUES:
            raise OSError(f"it holds more than {MOST_VALUES} values")


def holds_values(tensor: Any) -> bool:
    """Whether ``tensor`` is one that can be computed with."""
    return plain_tensor(tensor) is not None


def _opened(file: Path) -> Any:
    try:
        return open_safetensors(file)
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        check_utf8(file, "The file")
        refuse_pointer(file)
        raise CheckpointError(
            f"{file} cannot be read ({error}): it is damaged or incomplete; download it again."
        ) from None


def refuse_pointer(file: Path) -> None:
    """Raise ``CheckpointError`` where ``file`` is what git leaves of a large file."""
    if not file.is_file():  # a pipe would never end
        return
    with file.open("rb") as stream:
        start = stream.read(len(_POINTER))
    if start == _POINTER:
        raise CheckpointError(
            f"{file} is a Git LFS pointer and not the file itself: run `git lfs pull` in its "
            "folder, or download it again."
        )


def _lacking(file: Path, name: str, error: SafetensorError) -> CheckpointError:
    return CheckpointError(f"{file} does not hold {name} ({error}).")


def read_json(file: Path, most: int = JSON_BYTES) -> dict[str, Any]:
    """The parsed ``file``, of at most ``most`` bytes. Raises ``CheckpointError`` when it is missing
    or no JSON object."""
    try:
        return parsed_json(read_text(file, most), str(file))
    except FileNotFoundError:
        raise CheckpointError(f"{file.name} is missing in {file.parent}; put it there.") from None
    except CheckpointError as error:
        refuse_pointer(file)
        raise CheckpointError(f"{error} Download it again.") from None

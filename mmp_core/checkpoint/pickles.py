"""Pickled files, looked at before they are loaded: what PyTorch's own reader does not bound."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile, is_zipfile

MOST_VALUES = 10**6
"""In what is unpickled, where what is there several times counts each time."""
_PICKLES = 5
"""At the beginning of a file that is no archive: three about the format, the content, its keys."""
_TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "EMPTY_TUPLE": 0}
_STORING = ("PUT", "BINPUT", "LONG_BINPUT")
_RECALLING = ("GET", "BINGET", "LONG_BINGET")


def check_pickled(file: Path) -> None:
    """Raise ``OSError`` for a file of ``torch.save`` that would be larger than it is, or that holds
    the same in itself again and again: to hash, compare or show that would never end. What is
    damaged is left to the reader."""
    if not is_zipfile(file):
        with file.open("rb") as stream:
            _check_streams(stream, _PICKLES)
        return
    with ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != ZIP_STORED for entry in entries):
            raise OSError("its tensors are compressed")
        if sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise OSError("its parts overlap")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as stream:
                    _check_streams(stream, 1)


def _check_streams(stream: Any, count: int) -> None:
    for _ in range(count):
        try:
            sizes = max(_sizes(stream), default=0)
        except OSError:
            raise
        except Exception:  # no pickle: what pickletools raises is anything
            return
        if sizes > MOST_VALUES:
            raise OSError(f"it holds more than {MOST_VALUES} values")


def _sizes(stream: BinaryIO) -> Iterator[int]:
    """Of each value that a pickle makes: how many it holds, itself included; it ends after the
    first that holds too many."""
    stack: list[int | None] = []  # None: a mark
    kept: dict[int, int] = {}
    for code, argument, _ in pickletools.genops(stream):
        place: Any = argument
        if code.name in _RECALLING:
            stack.append(kept.get(int(place), 1))
        elif code.name in _STORING or code.name == "MEMOIZE":
            kept[len(kept) if code.name == "MEMOIZE" else int(place)] = stack[-1] or 1
        elif code.name == "MARK":
            stack.append(None)
        else:
            size = 1 + sum(_taken(stack, code))
            stack += [size] * len(code.stack_after)
            yield size
            if size > MOST_VALUES:
                return


def _taken(stack: list[int | None], code: pickletools.OpcodeInfo) -> list[int]:
    """What an operation takes from the stack, down to the mark where it does so."""
    if code.name in _TAKEN:
        return [stack.pop() or 0 for _ in range(_TAKEN[code.name])]
    before, taken = list(code.stack_before), []
    if pickletools.markobject in before:
        before = before[: before.index(pickletools.markobject)]
        while (size := stack.pop()) is not None:
            taken.append(size)
    return taken + [stack.pop() or 0 for _ in before]

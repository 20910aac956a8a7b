"""A file written tensor by tensor that is there only when it is whole. A writer that was killed is
gone on from, by the next one with the same header and the same sources."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from ..errors import InputError
from ..files import keep_mode
from ..outside import small_json


class Partial:
    """What is on disk of a file to be: its first bytes in ``path``, and a journal beside it. The
    journal's first line says what is written and since when, each other line names a tensor that is
    complete."""

    def __init__(self, out: Path):
        self.path = _path(out)
        self.journal = self.path.with_suffix(".journal")
        self.date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        self.done: set[str] = set()
        self._identity = ""
        if self.journal.is_file() and self.path.is_file():
            try:
                text = self.journal.read_text(encoding="utf-8")
                first, *names = text.split("\n")[:-1] or [""]
                self.date, self._identity = map(str, small_json(first))
                self.done = set(names)
            except (ValueError, TypeError):  # killed while it was written
                pass

    def begin(self, header: bytes, sources: Any) -> None:
        """Keep what is there if it was begun with ``header`` and ``sources``, else begin anew."""
        about = hashlib.sha256(header + json.dumps(sources).encode()).hexdigest()
        if about != self._identity:
            self.done, self._identity = set(), about
            self.journal.unlink(missing_ok=True)
            self.path.write_bytes(header)
            self._note(json.dumps([self.date, about]))

    def complete(self, file: BinaryIO, names: Iterable[str]) -> None:
        """Note that the tensors ``names`` have been written to ``file``."""
        file.flush()
        os.fsync(file.fileno())
        self.done |= set(names)
        self._note("\n".join(names))

    def _note(self, line: str) -> None:
        with self.journal.open("ab") as journal:
            journal.write(f"{line}\n".encode())
            journal.flush()
            os.fsync(journal.fileno())

    def remove(self) -> None:
        for path in (self.path, self.journal):
            path.unlink(missing_ok=True)


def _path(out: Path) -> Path:
    """Hidden, and no longer than what the longest name that is allowed leaves."""
    short = hashlib.sha256(out.name.encode()).hexdigest()[:8]
    return out.with_name(f".{out.name[:40]}-{short}.partial")


@contextmanager
def partial(out: Path, *, keep: bool) -> Iterator[Partial]:
    """What there is of ``out``, which is put in its place when the block ends without error.

    ``keep``: leave an unfinished one to a later call even after an error. Raises ``InputError``
    where another process is writing it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    place = _path(out).with_suffix(".lock")
    lock = FileLock(place, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{out} is being written by another process: wait for it.") from None
    unfinished = Partial(out)
    try:
        yield unfinished
        keep_mode(unfinished.path, out, unfinished.path.stat().st_mode)
        os.replace(unfinished.path, out)
        unfinished.remove()
    except BaseException:
        if not keep:
            unfinished.remove()
        raise
    finally:
        lock.release()
        place.unlink(missing_ok=True)

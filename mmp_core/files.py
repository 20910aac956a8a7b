"""Names of files that are checked before they are used, and files written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from stat import S_IMODE
from typing import Any

from safetensors import SafetensorError

from .errors import InputError, shortened, shown

Tell = Callable[[], object]
"""Called between parts of long work; may raise, which ends it."""

_ON_WINDOWS = os.name == "nt"
_PREFIX = 40
_MARK = ".mmada-part"
"""At the end of the names of files that are being written."""
_TEMPORARY = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(_MARK)}")
_DEVICES = {"CON", "PRN", "AUX", "NUL"} | {f"{d}{i}" for d in ("COM", "LPT") for i in range(10)}
_IMPOSSIBLE = {
    errno.ENAMETOOLONG: "the name is longer than the file system allows",
    errno.ELOOP: "it is a link to itself",
    errno.EINVAL: "the system does not allow this name",
}


@contextmanager
def accessing(kind: type[InputError] = InputError) -> Iterator[None]:
    """Turn what the file system refuses, whichever file it is, into one sentence."""
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        place = shortened(str(error.filename)) if error.filename else "A file"
        reason = error.strerror or shortened(str(error)) or type(error).__name__
        raise kind(f"{place} cannot be read or written ({reason}).") from None


def is_file(path: Path) -> bool:
    """Whether ``path`` is a file; not where no file can be called so."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or one with NUL
        return False


def checked_path(value: Any, what: str) -> Path:
    """``value``, text or a path, as a path that may exist, with ``~`` expanded. ``what``: how the
    message calls it, such as "--out". Raises ``InputError`` for what no file can be called: an
    empty name, one that is too long, or has NUL or undecodable characters in it."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise InputError(f"{what} is {shown(value)}; expected the name of a file.")
    if not text.strip():
        raise InputError(f"{what} is empty: give the name of a file.")
    path = Path(text)
    try:
        path = path.expanduser()
        os.stat(path)
    except OSError as error:
        if reason := _IMPOSSIBLE.get(error.errno or 0):
            raise InputError(f"{what} {shortened(text)}: {reason}; give another.") from None
    except (ValueError, RuntimeError) as error:  # NUL, a lone surrogate; the home of nobody
        reason = f"no file can have this name ({error})"
        raise InputError(f"{what} {shown(text)}: {reason}.") from None
    return path


def check_utf8(path: Path, what: str) -> None:
    """Raise ``InputError`` for a name in another encoding, by which some libraries open no file."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        text = shortened(str(path).encode(errors="replace").decode())
        raise InputError(
            f"{what} {text}: the name is not in UTF-8; rename the file, or the folder it is in."
        ) from None


@accessing()
def existing_file(value: Any, what: str, advice: str) -> Path:
    """:func:`checked_path` of a regular file that is there. ``advice``: what to give instead."""
    path = checked_path(value, what)
    if path.is_file():
        return path
    if path.is_dir():
        problem = "a folder"
    else:
        problem = "a pipe or a device" if path.exists() else "no such file"
    raise InputError(f"{what} {shortened(str(path))}: {problem}; {advice}.")


@accessing()
def writable_file(value: Any, what: str, endings: tuple[str, ...] = ()) -> Path:
    """:func:`checked_path` of a file that can be written, its folder made. ``endings``: those
    that it may have, in lower case. Raises ``InputError`` before any work is done."""
    path = checked_path(value, what)
    if path.is_dir():
        raise InputError(f"{what} {path} is a folder; give the name of a file in it.")
    if path.exists() and not path.is_file():
        raise InputError(f"{what} {path} is not a regular file; give another name.")
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"{what} {shortened(str(path))}: end the name in {' or '.join(endings)}.")
    if path.suffix.lower() == ".safetensors":
        check_utf8(path, what)
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    for folder in path.absolute().parents:
        if folder.exists() and not folder.is_dir():
            raise InputError(
                f"{what} {shortened(str(path))}: {folder} is no folder; give another name."
            )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle, name = tempfile.mkstemp(_MARK, _temporary_prefix(path), path.parent)
            os.close(handle)
            os.unlink(name)
        finally:
            for folder in missing:
                folder.rmdir()
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{shortened(str(path))} cannot be written ({reason}).") from None


class AlreadyExists(InputError):
    """A file that was to be new was written by another process meanwhile."""


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without error.
    Raises ``OSError`` where the disk is full, also for what safetensors says of it, and, if
    ``new``, ``AlreadyExists`` in place of replacing a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_temporary_prefix(path)}{secrets.token_hex(4)}{_MARK}"
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = temporary.stat().st_mode  # less the umask; safetensors writes files for their owner
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        keep_mode(temporary, path, mode)
        if new:
            _place_new(temporary, path)
        else:
            os.replace(temporary, path)
    except SafetensorError as error:
        number = int((re.search(r"os error (\d+)", str(error)) or [0, errno.EIO])[1])
        raise OSError(number, os.strerror(number), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def keep_mode(temporary: Path, path: Path, mode: int) -> None:
    """Who may read and write ``path`` may ``temporary``, which takes its place; where there is none
    as ``mode`` says. File systems without such rights have their own."""
    with suppress(OSError):
        mode = path.stat().st_mode
    with suppress(OSError):
        os.chmod(temporary, S_IMODE(mode))


def remove_half_written(folder: Path) -> None:
    """Remove what :func:`replacing` left in ``folder`` and below where its process was killed."""
    for place, _, names in os.walk(folder):
        for name in filter(_TEMPORARY.fullmatch, names):
            Path(place, name).unlink(missing_ok=True)


def _place_new(temporary: Path, path: Path) -> None:
    """Give ``temporary`` a name that no file has, in one step of the file system."""
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            os.replace(temporary, path)
    except FileExistsError:
        raise AlreadyExists(f"{path} already exists: give another name.") from None


def _temporary_prefix(path: Path) -> str:
    """Short, so that the longest name that is allowed can be written."""
    return f".{path.name[:_PREFIX]}."


def is_plain_name(name: Any) -> bool:
    """Whether ``name`` is that of a file in a given folder, and leads nowhere else on any system:
    no separators, drives, ``..``, control characters or names that Windows keeps for devices."""
    if not isinstance(name, str) or not name or len(name) > 255:
        return False
    if any(ord(c) < 32 or c in '/\\:*?"<>|' or "\ud800" <= c <= "\udfff" for c in name):
        return False
    device = name.split(".")[0].rstrip(" ").upper()
    return not name.endswith((" ", ".")) and device not in _DEVICES


def leads_out(name: str) -> bool:
    """Whether the relative path ``name`` leads out of its folder on any system, or is none; on
    Windows, to a device or another stream, too."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    if any(path.anchor or path.drive or ".." in path.parts for path in paths):
        return True
    return _ON_WINDOWS and not all(map(is_plain_name, paths[1].parts))


def readable_size(size: float) -> str:
    """``size`` in bytes as people read it: "8.5 GB", "12.0 MB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def readable_duration(seconds: float) -> str:
    """``seconds`` as people read it: "40 s", "3 min 20 s", "2 h 05 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"

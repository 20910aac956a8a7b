"""The gate for what comes from outside: values of files, graphs and command lines, with their
types, ranges and sizes. Nothing reaches torch, a tokenizer or the disk before it has passed here.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, InputError, sentence, shortened, shown
from .options import Option

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_TEXT = 20_000
"""Characters of an instruction or a reasoning text: many times what a model can read."""
MOST_SAMPLES, MOST_TEXT, MOST_SIDE = 1024, 4096, 4096
"""Samples of a batch, tokens of a text, pixels of a picture's side: what nodes offer; no model and
no memory could use more."""
JSON_BYTES = 2**20
"""Of a JSON file or line, unless more is said."""
_JSON_VALUES = 2**22
"""Of a JSON file, each of which takes many times the bytes that it is written with."""


def field(
    kind: type,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    choices: Sequence[Any] = (),
) -> Option:
    """What a value may be: see :class:`Option`. Null is a value, too."""
    return Option(kind, None, "", low=low, high=high, above=above, choices=tuple(choices))


def check_fields(values: Mapping[str, Any], fields: Mapping[str, Option], name: str) -> None:
    """Raises ``CheckpointError`` for the first of ``values`` that is not as ``fields`` say; others
    are left alone. ``name``: of the file, for the message."""
    for key, expected in fields.items():
        value = values.get(key)
        if value is not None and not expected.fits(value):
            raise CheckpointError(f"{name} has {key} {shown(value)}; expected {expected.expected}.")


def checked_text(value: Any, what: str, longest: int = LONGEST_TEXT) -> str:
    """``value``, if it is text that a tokenizer and a file can take. ``what``: how the message
    calls it. Raises ``InputError`` for another type, too many characters, or a lone surrogate."""
    if not isinstance(value, str):
        raise InputError(f"{what} is {shown(value)}; expected text.")
    if len(value) > longest:
        raise InputError(f"{what} has {len(value)} characters; expected at most {longest}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} has an invalid character at position {error.start + 1}: write it again "
            "(undecodable bytes, or half of an emoji)."
        ) from None
    return value


def checked_count(value: Any, what: str, low: int, high: int) -> int:
    """``value``, if it is a whole number of ``low`` … ``high``. Raises ``InputError``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise InputError(f"{what} is {shown(value)}; expected {low} to {high}.")
    return int(value)


def check_kind(value: Any, kind: Any, what: str, expected: str) -> None:
    """Raise ``InputError`` for a ``value`` of another type, which ``expected`` names in words."""
    if not isinstance(value, kind):
        raise InputError(f"{what} is {shown(value)}; expected {expected}.")


def check_model(model: Any, *parts: str) -> None:
    """Raise ``InputError`` for a ``model`` without ``parts``, which are names of attributes."""
    name, expected = "model", "a loaded checkpoint"
    if not all(hasattr(model, part) for part in parts):
        raise InputError(f"{name} is {shown(model)}; expected {expected}.")


def plain_tensor(value: Any) -> Tensor | None:
    """``value``, if it is an ordinary tensor, each of whose numbers is in memory; ``None`` for any
    other: sparse, nested, masked, quantised or packed, or without values. Signs and conjugates that
    a view only notes are carried out, since NumPy does not know them."""
    import torch  # which what reads a picture's file does without

    from .memory import is_out_of_memory

    if not isinstance(value, torch.Tensor) or isinstance(value, torch.masked.MaskedTensor):
        return None
    if value.is_meta or value.layout != torch.strided or value.is_nested or value.is_quantized:
        return None
    try:
        if value.numel():
            value[(0,) * value.ndim].clone().to(torch.complex64)
    except (RuntimeError, TypeError) as error:  # several values to an element
        if is_out_of_memory(error):
            raise
        return None
    return value.detach().resolve_conj().resolve_neg()


def check_bytes(file: Path, most: int = sys.maxsize) -> None:
    """Raise ``InputError`` where ``file`` is not regular, or larger than could be read; a pipe
    would never end. Raises ``OSError``, too."""
    status = file.stat()
    if not S_ISREG(status.st_mode):
        raise InputError(f"{file} is not a regular file: put the file itself there.")
    if status.st_size > most:
        raise InputError(f"{file} has {status.st_size} bytes; expected at most {most}.")


def read_text(
    file: Path,
    most: int = JSON_BYTES,
    error: type[InputError] = CheckpointError,
    name: str | None = None,
) -> str:
    """The text of a regular file of at most ``most`` bytes, without a byte-order mark: UTF-8, or
    what the mark says.
    ``name``: how the message calls it, by default with its folder. Raises ``error``, or
    ``FileNotFoundError``."""
    name = name or str(file)
    try:
        status = file.stat()
        if not S_ISREG(status.st_mode):
            raise error(sentence(f"{name} is not a regular file: put the file itself there."))
        if status.st_size > most:
            raise error(sentence(f"{name} has {status.st_size} bytes; expected at most {most}."))
        with file.open("rb") as stream:
            content = stream.read(status.st_size)  # which takes as much memory as it is given
        return content.decode(_encoding(content))
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as problem:
        raise error(
            sentence(f"{name} is not UTF-8 and cannot be read ({problem}): save it again.")
        ) from None
    except OSError as problem:
        reason = problem.strerror or problem
        raise error(sentence(f"{name} cannot be read ({reason}).")) from None


def _encoding(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return "utf-16" if wide else "utf-8-sig"


def head_of(file: Path, most: int = 2**16) -> str:
    """How the text ``file`` begins, undecodable bytes replaced; empty where there is none."""
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        content = stream.read(most)
    return content.decode(_encoding(content), errors="replace").replace("\r\n", "\n")


def parsed_json(text: str, name: str, error: type[InputError] = CheckpointError) -> dict[str, Any]:
    """The JSON object that ``text`` is. Raises ``error`` for anything else, nested too deep."""
    try:
        if text.count(",") + text.count("[") + text.count("{") > _JSON_VALUES:
            raise ValueError(f"more than {_JSON_VALUES} values")
        content = json.loads(text)
    except (ValueError, RecursionError, TypeError, AttributeError) as problem:
        why = _said(problem)
        raise error(sentence(f"{name} is not JSON and cannot be read ({why}).")) from None
    if not isinstance(content, dict):
        raise error(sentence(f"{name} is not a JSON object: expected {{…}}."))
    return content


def small_json(text: str | bytes, most: int = 2**16) -> Any:
    """The JSON value that ``text`` is, of at most ``most`` characters, since values of few
    characters take much memory. Raises ``ValueError``."""
    if len(text) > most:
        raise ValueError(f"it has {len(text)} characters of JSON; expected at most {most}")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _said(problem: Exception) -> str:
    return "nested too deep" if isinstance(problem, RecursionError) else shortened(str(problem))

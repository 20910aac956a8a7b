"""Errors a user can act on. Their text names the input, what was expected and what to do. Also what
is said where nothing is wrong: :func:`sentence`."""

from __future__ import annotations

import re
from typing import Any

_SHOWN, _LONGEST = 100, 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")


class InputError(ValueError):
    """A value chosen by you cannot be used. The text is one line of at most 1000 characters,
    whatever names of files, tensors and fields are in it."""

    def __init__(self, text: object = ""):
        super().__init__(shortened(str(text), _LONGEST))


class CheckpointError(InputError):
    """A checkpoint is missing, incomplete, or of another kind."""


class NotFinite(InputError):
    """The model's values are not finite numbers."""


def sentence(text: str) -> str:
    """``text``, said to people. ``locales/`` translates what this is called with, as it does the
    text of an :class:`InputError`: tests/nodes/locales.py."""
    return text


def shortened(text: str, longest: int = _SHOWN) -> str:
    """``text`` for a message: on one line, its middle left out where it is longer, and what UTF-8
    cannot say, such as a file's name of other bytes, written as Python escapes it."""
    text = _CONTROL.sub(" ", text).encode(errors="backslashreplace").decode()
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}…{text[-half + 1 :]}"


def shown(value: Any) -> str:
    """``value`` for a message, short whatever it is."""
    try:
        return shortened(repr(value))
    except Exception:  # a whole number of more digits than Python writes, or a broken __repr__
        return f"a {type(value).__name__}"

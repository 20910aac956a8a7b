"""Errors a user can act on. Their text names the input, what was expected and what to do."""

from __future__ import annotations

import re
from typing import Any

_SHOWN = 100
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")


class InputError(ValueError):
    """A value chosen by you cannot be used."""


class CheckpointError(InputError):
    """A checkpoint is missing, incomplete, or of another kind."""


class NotFinite(InputError):
    """The model's values are not finite numbers."""


def shortened(text: str) -> str:
    """``text`` for a message: on one line, its middle left out where it is long."""
    text = _CONTROL.sub(" ", text)
    if len(text) <= _SHOWN:
        return text
    return f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"


def shown(value: Any) -> str:
    """``value`` for a message, short whatever it is."""
    try:
        return shortened(repr(value))
    except Exception:  # a whole number of more digits than Python writes, or a broken __repr__
        return f"a {type(value).__name__}"

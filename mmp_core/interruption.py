"""Whether to go on, asked where no callback is handed down to: inside Pillow's decoders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

EVERY = 0.25
"""Seconds."""
_question: ContextVar[Callable[[], object] | None] = ContextVar("question", default=None)


class _Stopped(BaseException):
    """Not an ``Exception``, which readers of files take for damage."""

    def __init__(self, reason: Exception):
        self.reason = reason


@contextmanager
def asking(question: Callable[[], object] | None) -> Iterator[None]:
    """Inside, :func:`ask` calls ``question``, at most every :data:`EVERY` seconds; what that raises
    leaves the block as it is."""
    asked = time.monotonic()

    def seldom() -> None:
        nonlocal asked
        if question is not None and (now := time.monotonic()) - asked >= EVERY:
            asked = now
            question()

    before = _question.set(seldom)
    try:
        yield
    except _Stopped as stopped:
        raise stopped.reason from None
    finally:
        _question.reset(before)


def ask() -> None:
    question = _question.get()
    if question is not None:
        try:
            question()
        except Exception as reason:
            raise _Stopped(reason) from None

"""Signals that would cut an update in two, or kill processes that make batches."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

ENDING = [
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
]
"""Ctrl-C, a cluster's or container's end, a terminal that was closed (not on Windows)."""


class HeldSignals:
    """Holds back signals that a program handles itself, from :meth:`hold` to :meth:`release`.

    A second one is not held back: whoever presses Ctrl-C twice does not want to wait. Nothing
    happens in threads other than the main one, to which signals come.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: list[int] = []

    def hold(self) -> None:
        if self._handlers or threading.current_thread() is not threading.main_thread():
            return
        for number in ENDING:
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, self._note)

    def release(self) -> None:
        """Handle what came meanwhile: its handler may raise."""
        came = self._put_back()
        if came:
            signal.raise_signal(came[0])

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)
        if len(self._came) > 1:
            handler = self._handlers[number]
            self._put_back()
            handler(number, frame)

    def _put_back(self) -> list[int]:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        came, self._handlers, self._came = self._came, {}, []
        return came


def ends_quietly(worker: int) -> None:
    """``worker_init_fn`` of a ``DataLoader``: a signal to the whole group ends its processes
    without an error, which would reach the one that began them in the middle of anything. That one
    gets the signal, too."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, lambda *_: os._exit(0))

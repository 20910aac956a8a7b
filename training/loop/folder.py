"""The folder of a run: its state, whole or absent, and its log, one line a step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ...mmp_core.checkpoint.tensors import read_pickled
from ...mmp_core.errors import InputError, shortened, shown
from ...mmp_core.files import (
    accessing,
    check_utf8,
    checked_path,
    remove_half_written,
    replacing,
    writing,
)
from ...mmp_core.memory import is_out_of_memory
from ...mmp_core.outside import check_bytes, field, small_json
from ..data.items import Counted, counted

_LOG_BYTES, _LINE_BYTES = 2**28, 2**13
"""Of a log that is read, a million steps, and of one step, many times what is measured."""
MOST_STEPS = 10**9
"""That any run could have taken."""


_STEP = field(int, 0, MOST_STEPS)
_METRIC = field(float, -1e30, 1e30)
"""What a plot can show."""


def _is_metric(value: Any) -> bool:
    """Whether a step could have measured ``value``, which need not be finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return True
    return _METRIC.fits(value)


class RunFolder:
    """``run.pt``, ``log.jsonl`` and, where TensorBoard is installed, its events."""

    def __init__(self, path: Path):
        self.path = checked_path(path, "The folder of the run")
        check_utf8(self.path, "The folder of the run")
        self.saved_step: int | None = None
        self._board: Any = None

    @property
    def state_file(self) -> Path:
        return self.path / "run.pt"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def last_good(self) -> str:
        """What can be resumed from, as the last sentence of a message."""
        if self.saved_step is None:
            return "Nothing had been saved yet."
        return f"The state after step {self.saved_step} is kept in {self.state_file}."

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other process changes the run; the folder is made, and temporary files that a
        killed one left are removed. Raises ``InputError`` where another holds it, or where it
        cannot be written."""
        lock = FileLock(self.path / ".lock", timeout=0)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise InputError(
                    f"{self.path} is in use by another process: wait for it, or give another name."
                ) from None
            except NotImplementedError:  # a file system without locks
                pass
        try:
            self._check_log()
            remove_half_written(self.path)
            yield
        finally:
            lock.release()

    @accessing()
    def _check_log(self) -> None:
        """Raises ``InputError`` for a pipe, which would never end."""
        if self.log_file.exists() and not self.log_file.is_dir():
            check_bytes(self.log_file)

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the state. Raises ``InputError`` if that is not possible; the last one stays."""
        try:
            with replacing(self.state_file) as path, open(path, "wb") as file:
                torch.save(dict(state), file)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise InputError(
                f"The state after step {state['step']} could not be written to {self.state_file} "
                f"({reason}): make room there and resume. {self.last_good}"
            ) from error
        self.saved_step = state["step"]

    @accessing()
    def read(self, device: torch.device | str) -> dict[str, Any] | None:
        """The state, or ``None`` without one. Raises ``InputError`` for a damaged one."""
        if not self.state_file.is_file():
            return None
        try:
            state = read_pickled(self.state_file, device)
            if not _STEP.fits(step := state["step"]):
                raise TypeError(f"its step is {shown(step)}")
        except Exception as error:
            raise self._damaged(error) from error
        self.saved_step = step
        return state

    @contextmanager
    def taking_over(self) -> Iterator[None]:
        """Inside, what the state raises that :meth:`read` gave becomes an ``InputError``, but for
        memory that runs out."""
        try:
            yield
        except InputError:
            raise
        except (
            RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
        ) as error:  # fmt: skip
            if is_out_of_memory(error):
                raise
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"{self.state_file} cannot be read ({shortened(str(error) or repr(error))}): it "
            "is not the state of a run, or it is damaged. Begin another run elsewhere."
        )

    def refuse_changes(
        self, begun: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]
    ) -> None:
        """Raises ``InputError`` if settings called ``names`` differ from those of the begun run.

        Parts of a setting that the begun run did not know yet do not differ.
        """
        for name in names:
            before, wanted = begun.get(name, now[name]), now[name]
            if isinstance(before, Mapping) and isinstance(wanted, Mapping):
                self.refuse_changes(before, wanted, wanted)
            elif before != wanted:
                raise InputError(
                    f"{self.state_file} was begun with {name} {before}, not {wanted}: resume it "
                    "with the same, or start another run elsewhere."
                )

    def log(self, line: Mapping[str, float]) -> None:
        """Append ``line``, which has its ``step``. Raises ``InputError`` where it cannot."""
        self._check_log()
        short = {k: v if isinstance(v, int) else float(f"{v:.6g}") for k, v in line.items()}
        try:
            with open(self.log_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(short) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.log_file} could not be written ({error.strerror or error}): make room "
                f"there and resume. {self.last_good}"
            ) from error
        self.show(int(line["step"]), line)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """On TensorBoard, where there is one."""
        try:
            if board := self._tensorboard(step):
                for name, value in metrics.items():
                    board.add_scalar(name, value, step)
                board.flush()
        except OSError:  # the disk is full, or no folder can be there: the run has its log
            self.close()
            self._board = False

    def close(self) -> None:
        """End TensorBoard's thread, until there is more to show."""
        board, self._board = self._board, None
        if board:
            with suppress(OSError):
                board.close()

    @accessing()
    def lines(self, callback: Counted | None = None) -> list[dict[str, float]]:
        """The log so far, up to a line that was cut off or is not one of a step and numbers.
        ``callback(done, total)`` counts lines now and then, and may raise."""
        lines = []
        text = b""
        if self.log_file.is_file():
            check_bytes(self.log_file, _LOG_BYTES)
            text = self.log_file.read_bytes()
        for line in counted(text.splitlines(), callback):
            try:
                values = small_json(line, _LINE_BYTES)
            except ValueError:
                break
            if not isinstance(values, dict) or not _STEP.fits(values.get("step")):
                break
            if not all(map(_is_metric, values.values())):
                break
            lines.append(values)
        return lines

    def forget_after(self, step: int, callback: Counted | None = None) -> None:
        """Remove the lines of later steps, which will be run again. ``callback`` counts lines."""
        if self.log_file.is_file():
            lines = [line for line in self.lines(callback) if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in counted(lines, callback))
            with writing(self.log_file), replacing(self.log_file) as path:
                path.write_text(text, "utf-8")

    def _tensorboard(self, step: int) -> Any:
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except Exception:  # missing or broken: the run has its log
                self._board = False
            else:
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        return self._board

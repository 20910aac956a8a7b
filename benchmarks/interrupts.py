"""How long work on large inputs goes on after somebody wants to stop it.

``python -m mmada_parallel.benchmarks.interrupts FILE [NAME …] [--folder /tmp]`` does each piece of
work of ``interrupts_work.py`` and ``interrupts_data.py``, or those named, in a process of its own,
inside ComfyUI's modules on a CPU, with one thread. ComfyUI's check whether a run was interrupted is
wrapped by a clock: the longest time from one check to the next, from the start to the first, and
from the last to the end. For Ctrl-C a timer sends a signal every 10 ms; its handler runs where a
KeyboardInterrupt would be raised, between two of Python's instructions, so that the longest time
between two of its calls is the longest one that Ctrl-C waits. CPU time of the process, and wall
time. FILE is written after each piece of work and keeps those of others. Linux only.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmada_parallel.benchmarks import interrupts_data  # noqa: F401  (its work is listed, too)
from mmada_parallel.benchmarks.interrupts_work import WORKS, Place, import_host
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.mmp_core.files import replacing

_ASKING = ("stop_if_interrupted", "leave_if_interrupted", "run_every_op")
TICK = 0.01
"""Seconds between two signals."""


class Gaps:
    """The longest times between two marks, and where the longest one ended."""

    def __init__(self) -> None:
        self.marks, self.first = 0, (0.0, 0.0)
        self.longest = {"cpu": 0.0, "wall": 0.0, "until": ""}
        self._last = _now()

    def mark(self, place: str) -> tuple[float, float]:
        now = _now()
        cpu, wall = (b - a for a, b in zip(self._last, now, strict=True))
        self._last = now
        if not self.marks:
            self.first = cpu, wall
        elif cpu > self.longest["cpu"]:
            self.longest |= {"cpu": cpu, "until": place}
        if self.marks:
            self.longest["wall"] = max(wall, self.longest["wall"])
        self.marks += 1
        return cpu, wall

    def ended(self) -> dict[str, Any]:
        """What was found, with the time from the last mark to now."""
        marks, (cpu, wall) = self.marks, (b - a for a, b in zip(self._last, _now(), strict=True))
        return {
            "count": marks,
            "between": _rounded(self.longest),
            "to_first": _rounded(dict(zip(("cpu", "wall"), self.first, strict=True))),
            "from_last": _rounded({"cpu": cpu, "wall": wall}),
        }


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def measured(work: Callable[[], object]) -> dict[str, Any]:
    """The gaps of ``work``: those of ComfyUI's check, and those of Ctrl-C."""
    import comfy.model_management as management

    signal.signal(signal.SIGALRM, lambda number, frame: keys.mark(_place(frame)))
    signal.siginterrupt(signal.SIGALRM, False)
    names = "throw_exception_if_processing_interrupted", "processing_interrupted"
    before = {name: getattr(management, name) for name in names}
    checks, keys, began = Gaps(), Gaps(), _now()

    def check() -> None:
        frame = sys._getframe(1)
        while frame.f_back and frame.f_code.co_name in _ASKING:
            frame = frame.f_back
        checks.mark(_place(frame))

    for name in names:
        setattr(management, name, check)
    signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
    try:
        work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        found = {"checks": checks.ended(), "ctrl_c": keys.ended()}
        for name in names:
            setattr(management, name, before[name])
    cpu, wall = (b - a for a, b in zip(began, _now(), strict=True))
    return {**found, "whole": _rounded({"cpu": cpu, "wall": wall})}


def child(name: str, folder: Path, out: Path) -> None:
    """Do the work called ``name`` in ``folder``, and write what was measured to ``out``."""
    size, prepare = WORKS[name]
    work = prepare(Place(folder))
    found = {"size": size, **measured(work)}
    found["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    out.write_text(json.dumps(found))


def run(name: str, parent: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        out = Path(folder, "found.json")
        process = get_context("fork").Process(target=child, args=(name, Path(folder), out))
        process.start()
        process.join()
        if process.exitcode:
            return {"failed": f"the process ended with {process.exitcode}"}
        return json.loads(out.read_text())


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*WORKS, []])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    torch.set_num_threads(1)
    import_host()
    results: dict[str, Any] = {"work": {}}
    if args.out.exists():
        results = json.loads(args.out.read_text())
    results["command"] = "python -m mmada_parallel.benchmarks.interrupts FILE"
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} shared cores, one thread"
    for name in args.names or WORKS:
        print(name, file=sys.stderr, flush=True)
        results["work"][name] = {**run(name, args.folder), "date": str(date.today())}
        with replacing(args.out) as file:
            file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Measuring: time, memory, and a report that keeps what is done when time runs out."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.mmp_core.files import replacing
from torch import nn


def parser_of(document: str | None) -> argparse.ArgumentParser:
    """The parser of a script whose docstring begins with what it is for."""
    return argparse.ArgumentParser(description=(document or "").partition("\n")[0])


@dataclass
class Report:
    """What was found, written to ``out`` after each part."""

    out: Path | None
    deadline: float
    results: dict[str, Any] = field(default_factory=lambda: {"skipped": [], "failed": []})

    def part(self, name: str, expected: float, run: Callable[[], Any]) -> Any:
        """Do ``run``, if ``expected`` seconds are left, and keep what it returns as ``name``; or
        ``None``. What fails, say for want of memory, leaves its reason, and the rest goes on."""
        left = self.deadline - time.monotonic()
        if expected > left:
            self.results["skipped"].append(f"{name}: {expected:.0f} s wanted, {left:.0f} s left")
            return None
        print(f"{name} ({left:.0f} s left)", file=sys.stderr, flush=True)
        try:
            self.results[name] = run()
        except Exception as problem:
            traceback.print_exc()
            reason = str(problem).partition("\n")[0]
            self.results["failed"].append(f"{name}: {type(problem).__name__}: {reason}")
        self.save()
        return self.results.get(name)

    def save(self) -> None:
        if self.out is not None:
            with replacing(self.out) as file:
                file.write_text(json.dumps(self.results, indent=1) + "\n")


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


Clock = Callable[[], float]


def seconds(run: Callable[[], object], repeats: int, clock: Clock = time.perf_counter) -> float:
    """Median time of ``run``, once warm."""
    times = []
    for _ in range(repeats):
        synchronise()
        began = clock()
        run()
        synchronise()
        times.append(clock() - began)
    return statistics.median(times)


def measured(run: Callable[[], float]) -> dict[str, float]:
    """Milliseconds that ``run`` returns in seconds, and the memory it needed."""
    if not torch.cuda.is_available():
        return {"ms": 1e3 * run()}
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    taken = run()
    return {"ms": 1e3 * taken, "mb": (torch.cuda.max_memory_allocated() - before) / 1e6}


def once(run: Callable[[], object], clock: Clock = time.perf_counter) -> dict[str, float]:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    results = {"seconds": seconds(run, 1, clock)}
    if torch.cuda.is_available():
        results["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return results


class Inside:
    """Seconds that a transformer's forwards take while this is open, by the device's own clock."""

    def __init__(self, transformer: nn.Module, device: torch.device):
        self.transformer, self.device, self.marks = transformer, device, []

    def __enter__(self) -> Inside:
        self.hooks = [
            self.transformer.register_forward_pre_hook(lambda *call: self.mark()),
            self.transformer.register_forward_hook(lambda *call: self.mark()),
        ]
        self.mark()
        return self

    def __exit__(self, *problem: object) -> None:
        self.mark()
        for hook in self.hooks:
            hook.remove()

    def mark(self) -> None:
        if self.device.type == "cuda":
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def outside_share(self) -> float:
        """Of the time from opening to closing, the share that no forward took."""
        if self.device.type == "cuda":
            synchronise()
            places = [self.marks[0].elapsed_time(mark) for mark in self.marks]
        else:
            places = self.marks
        within = sum(end - begin for begin, end in zip(places[1::2], places[2::2], strict=False))
        return 1 - within / (places[-1] - places[0])


@contextmanager
def kernels_off() -> Iterator[None]:
    before = os.environ.get("MMADA_KERNELS")
    os.environ["MMADA_KERNELS"] = "0"
    try:
        yield
    finally:
        os.environ.pop("MMADA_KERNELS")
        if before is not None:
            os.environ["MMADA_KERNELS"] = before

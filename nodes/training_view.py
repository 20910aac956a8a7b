"""What a training node shows while it runs: figures, samples, and afterwards the curve."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..training.loop.run import PolicyRun
from ..views.plot import line_plot
from .host import Progress, stop_if_interrupted
from .training_recipe import Metrics, Recipe

_RECENT = 10
"""Steps over which the time per step is averaged."""


class TrainingView:
    """``callback`` and ``progress`` for ``PolicyRun.train``; stops when interrupted.

    ``preview_every``: steps between samples, 0 for none. ``memory``: gives a line about it.
    """

    def __init__(
        self,
        page: Progress,
        run: PolicyRun,
        recipe: Recipe,
        preview_every: int,
        memory: Callable[[], str],
    ):
        self.page, self.run, self.recipe = page, run, recipe
        self.preview_every, self.memory = preview_every, memory
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        self._lines = ""

    def progress(self, phase: str, done: int, total: int) -> None:
        stop_if_interrupted()
        if self.page.text_due:
            share = f", {100 * done // total} %" if total else ""
            now = f"step {self.run.step + 1} of {self.run.settings.steps}: {phase}{share}"
            self.page.show_text("\n".join(filter(None, (now, self._lines))))

    def callback(self, step: int, metrics: Metrics) -> None:
        total = self.run.settings.steps
        self._seconds.append(metrics["seconds"])
        each = sum(self._seconds) / len(self._seconds)
        left = f", {duration((total - step) * each)} left" if step < total else ""
        self._lines = "\n".join(
            (
                f"after step {step} of {total}:",
                self.recipe.figures(metrics),
                f"{each:.1f} s per step{left}",
                self.memory(),
            )
        )
        self.page.show_text(self._lines)
        due = self.preview_every and (step % self.preview_every == 0 or step == total)
        self.page.show(step, total, self.recipe.picture(self.run) if due else None)
        stop_if_interrupted()

    def last(self, told: str) -> None:
        """``told`` above the last figures, once nothing is trained any more."""
        self.page.show_text("\n".join(filter(None, (told, self._lines))))


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def curve(lines: Sequence[Metrics], name: str, label: str) -> torch.Tensor:
    """(1, H, W, 3) float 0 … 1: a plot of ``name`` over the steps of ``lines``."""
    values = torch.tensor([[line[name]] for line in lines])
    plot = line_plot(values, [int(line["step"]) for line in lines], x_label="step", y_label=label)
    return torch.from_numpy(np.asarray(plot, dtype=np.float32) / 255)[None]

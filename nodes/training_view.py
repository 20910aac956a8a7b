"""What a training node shows while it runs: figures, samples and memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ..training.loop.run import TrainingRun
from ..views.examples import answers_sheet
from .host import Progress, stop_if_interrupted
from .training_recipes import Metrics, Recipe

_RECENT = 10
"""Steps over which the time per step is averaged."""
_SAMPLES = 4


class TrainingView:
    """``callback`` and ``progress`` for ``TrainingRun.train``; stops when interrupted.

    ``preview_every``: steps between samples, 0 for none. ``memory``: gives a line about it.
    """

    def __init__(
        self,
        page: Progress,
        run: TrainingRun,
        recipe: Recipe[Any, Any],
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
            self.show(f"step {self.run.step + 1} of {self.run.settings.steps}: {phase}{share}")

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
        self.show()
        due = self.preview_every and (step % self.preview_every == 0 or step == total)
        self.page.show(step, total, self._samples() if due else None)
        stop_if_interrupted()

    def show(self, line: str = "") -> str:
        """``line`` above the latest figures; the whole text."""
        text = "\n".join(filter(None, (line, self._lines)))
        self.page.show_text(text)
        return text

    def _samples(self) -> Any:
        pairs = self.recipe.samples(self.run, _SAMPLES)
        return answers_sheet((pair.case.instruction, pair.text, pair.picture) for pair in pairs)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"

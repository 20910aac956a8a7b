"""What a run shows: text and picture as they form, and afterwards its recorded steps."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from ..mmp_core import (
    MASKED,
    MASKED_TEXT,
    InputError,
    Model,
    Step,
    TokenState,
    Trajectory,
    decode_image,
    decode_text,
)
from ..mmp_core.editing import text_pieces
from ..mmp_core.errors import sentence
from ..mmp_core.files import readable_duration
from ..views.sheet import contact_sheet
from ..views.trajectory import spread_steps, veiled_picture
from .host import Progress, Run, interruptible, save_temporary, stop_if_interrupted

RECORDED_STEPS = "mmada_parallel_steps"
"""The viewer's key among the node's ui data; web/denoise_viewer.js knows it too."""
FRAMES, FEWEST_FRAMES = 24, 8
"""How many recorded steps of a sample go to the viewer. Each costs a decoded picture, so a quick
run gets fewer: as many as take ``_SHARE`` of its time; ``_LEAST`` at least in a large batch."""
_SHARE, _LEAST = 0.05, 2
_LIVE_SHARE = 0.05
"""Share (0 … 1) of a run's time, so far, that its live previews may take."""
_RECENT, _SURE = 10, 3
"""Steps over which the time per step is averaged, and fewest to say from it how much is left."""
_CELL = 256
_COLUMNS = 4
_log = logging.getLogger(__name__)


class LiveView:
    """A callback for ``denoise_in_batches``. Shows the first sample of a part; ends the run when
    ``run`` is to end."""

    def __init__(
        self,
        model: Model,
        progress: Progress,
        preview_every: int,
        run: Run | None = None,
        used: str = "",
    ):
        """``used``: the settings of the run, in words."""
        self.used = used
        self.model, self.progress, self.preview_every = model, progress, preview_every
        self.run = run or Run()
        self.planned = 0
        """Steps of a run that is not ended early."""
        self._shown: TokenState | None = None
        self._reached: dict[int, TokenState] = {}
        self._steps, self._done, self._total, self._note = 0, 0, 1, ""
        self._sample, self._batch, self._parts = 0, 1, 1
        self._cost = ""
        self._times: deque[float] = deque(maxlen=_RECENT + 1)
        self._previewed, self._latest = 0.0, 0.0
        self._results: list[Image.Image] = []
        self._frames, self._started = FRAMES, time.perf_counter()

    def say(self, cost: str) -> None:
        """What the next part of the run needs; shown at once before the first step."""
        self._cost = f"{self.used} {cost}".strip()
        if not self._times:
            self.progress.show_words(0, 0, [], self._cost, said=self._cost, **self._place)

    def part(self, samples: range, batch: int) -> None:
        """Before the steps of ``samples`` of a batch. Says on the node that it was split."""
        self._shown = None
        self._sample, self._batch = samples.start, batch
        if samples.start == 0:
            self._parts = math.ceil(batch / len(samples))
        if len(samples) < batch:
            first, last = samples.start, samples.stop - 1
            which = f"samples {first} to {last}" if len(samples) > 1 else f"sample {first}"
            self._note = (
                f"[{which} of 0 to {batch - 1}, since there is not enough memory for all at once]"
                "\n\n"
            )

    def __call__(self, index: int, total: int, step: Step) -> bool:
        self._reached[self._sample] = step.after
        self._steps, self._done, self._total = step.index + 1, index + 1, total
        if self._sample == 0:
            self.planned = total // self._parts
        stop_if_interrupted()
        wanted = self._drawn(step.state) and index % self.preview_every == 0
        self._times.append(time.perf_counter())
        picture = self._preview(step) if wanted and self.progress.picture_due else None
        self.progress.show(index + 1, total, picture)
        if self._shown is None:
            self._shown = step.state[:1]
        if self.progress.text_due:
            self._show_text(index + 1, step.after[:1])
        return self.run.stop_asked

    def _preview(self, step: Step) -> Image.Image | None:
        """The picture so far, unless it would take more than its share of the time."""
        step.after.image[:1].cpu()  # so that what is measured is not the step
        before = time.perf_counter()
        if self._previewed + self._latest > _LIVE_SHARE * (before - self._started):
            return None
        picture = veiled_picture(self.model, step.guess[:1], step.after[:1])
        self._latest = time.perf_counter() - before
        self._previewed += self._latest
        return picture

    @property
    def _left(self) -> str:
        """How long the run still takes, once that can be said."""
        done = len(self._times)
        if done < _SURE or self._done >= self._total:
            return ""
        each = (self._times[-1] - self._times[0]) / (done - 1)
        return sentence(f"about {readable_duration((self._total - self._done) * each)} left")

    @property
    def _place(self) -> dict[str, int]:
        return {"sample": self._sample, "batch": self._batch, "item": self.run.item}

    def reached(self, initial: TokenState) -> TokenState | None:
        """The state after the last step, which began at ``initial``; ``None`` before the first."""
        if not self._reached:
            return None
        text, image = initial.text.clone(), initial.image.clone()
        for sample, state in self._reached.items():
            samples = slice(sample, sample + state.batch)
            text[samples], image[samples] = state.text.cpu(), state.image.cpu()
        return replace(initial, text=text, image=image)

    def finish(self, trajectory: Trajectory) -> None:
        """Show the result."""
        self._sample, final, self._cost = 0, trajectory.final, ""
        if self._note:
            self._note = "[in parts, since there was not enough memory for all at once]\n\n"
        if self._drawn(final):
            before = time.perf_counter()
            self._results = [decode_image(self.model, final[:1])[0]]
            affordable = _SHARE * (before - self._started) / max(time.perf_counter() - before, 1e-6)
            fewest = min(FEWEST_FRAMES, max(_LEAST, FEWEST_FRAMES**2 // final.batch))
            self._frames = min(max(int(affordable / final.batch), fewest), FRAMES)
            for sample in range(1, final.batch):
                stop_if_interrupted()
                self._results += decode_image(self.model, final[sample : sample + 1])
        self.progress.show(self._total, self._total, next(iter(self._results), None))
        self._show_text(self._total, final[:1])

    def show_kept(self, reached: TokenState, kept: str) -> None:
        """Offer what an interrupted run has :meth:`reached`, the file ``kept``."""
        ended = {"kept": kept, "ended": self._steps, "planned": self.planned}
        which = slice(self._sample, self._sample + 1)
        self._show_text(self._done, reached[which], **ended)

    def _drawn(self, state: TokenState) -> bool:
        """Whether pictures are shown: none of an answer that is text alone."""
        return self.preview_every > 0 and min(state.grid) > 0

    def recorded(self, trajectory: Trajectory, kept: str | None = None) -> dict[str, list] | None:
        """The node's ui data, after :meth:`finish`: what the viewer scrubs over, if there is any.
        ``kept``: the file of the tokens of a run that ended early.

        A list in a list, since the page takes a dict in a list for a file.
        """
        if not len(trajectory):
            return None
        steps = spread_steps(trajectory, self._frames)
        samples = []
        for sample in interruptible(range(trajectory.final.batch)):
            data: dict[str, Any] = recorded_text(self.model, trajectory, steps, sample)
            data["sheet"] = self._saved_sheet(steps, sample) if self._results else None
            samples.append(data)
        run = {
            "steps": [step.index + 1 for step in steps],
            "total": trajectory.total_steps,
            "planned": self.planned,
            "used": self.used,
            "kept": kept,
            "samples": samples,
        }
        return {RECORDED_STEPS: [[run]]}

    def _show_text(self, done: int, state: TokenState, **more: object) -> None:
        text = decode_text(self.model, state, masked=MASKED_TEXT)[0]
        words = words_since(self.model, state, self._shown)
        said = self._left or self._cost
        plain = f"{self._note}{f'[{said}]' if said else ''}\n\n{text}".strip()
        self.progress.show_words(done, self._total, words, plain, said=said, **self._place, **more)
        self._shown = state

    def _saved_sheet(self, steps: Sequence[Step], sample: int) -> dict[str, Any] | None:
        """Where the pictures of ``steps`` lie, the last one being the result; ``None`` where they
        cannot be written, for which no result should be lost."""
        pictures, which = [], slice(sample, sample + 1)
        for step in steps[:-1]:
            stop_if_interrupted()
            pictures.append(veiled_picture(self.model, step.guess[which], step.after[which]))
        pictures.append(self._results[sample].copy())
        for picture in pictures:
            picture.thumbnail((_CELL, _CELL))
        try:
            file = save_temporary(contact_sheet(pictures, _COLUMNS))
        except InputError as error:
            _log.warning("MMaDA-Parallel: the steps cannot be looked at. %s", error)
            return None
        columns, (width, height) = min(_COLUMNS, len(pictures)), pictures[0].size
        return {"file": file, "columns": columns, "width": width, "height": height}


def words_since(
    model: Model, state: TokenState, before: TokenState | None
) -> list[tuple[str, str]]:
    """Each text token of a batch of one with "masked", "new" or "unmasked".

    New are those that were masked in ``before``; without it, none.
    """
    now = (state.text[0] != MASKED).tolist()
    then = now if before is None else (before.text[0] != MASKED).tolist()
    names = [
        "masked" if not is_unmasked else "unmasked" if was_unmasked else "new"
        for is_unmasked, was_unmasked in zip(now, then, strict=True)
    ]
    return list(zip(text_pieces(model, state)[0], names, strict=True))


def recorded_text(
    model: Model, trajectory: Trajectory, steps: Sequence[Step], sample: int = 0
) -> dict[str, Any]:
    """The words of a sample at ``steps``, of which the last one stands for the final state.

    ``words``: the final text, one string per token. ``since``: the position in ``steps`` from which
    on each token is unmasked, -1 if it was from the start, their number if it is not at the end.
    """
    which = slice(sample, sample + 1)
    final = trajectory.final[which]
    since = [len(steps)] * final.text.shape[1]
    states = [trajectory.initial[which], *(step.after[which] for step in steps[:-1]), final]
    for frame, state in reversed(list(enumerate(states, start=-1))):
        for position, token in enumerate(state.text[0].tolist()):
            if token != MASKED:
                since[position] = frame
    return {"words": text_pieces(model, final)[0], "since": since}

"""What a run shows: text and picture as they form, and afterwards its recorded steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..mmp_core import (
    MASKED,
    MASKED_TEXT,
    Model,
    Step,
    TokenState,
    Trajectory,
    decode_image,
    decode_text,
)
from ..mmp_core.editing import text_pieces
from ..views.sheet import contact_sheet
from ..views.trajectory import spread_steps, veiled_picture
from .host import Progress, save_temporary, stop_if_interrupted

RECORDED_STEPS = "mmada_parallel_steps"
"""The viewer's key among the node's ui data; web/denoise_viewer.js knows it too."""
FRAMES, FEWEST_FRAMES = 24, 8
"""How many recorded steps go to the viewer. Each costs a decoded picture, so a quick run gets
fewer: as many as take ``_SHARE`` of its time."""
_SHARE = 0.1
_CELL = 256
_COLUMNS = 4


class LiveView:
    """A callback for ``denoise_in_batches``. Shows the first sample of a part; stops when
    interrupted."""

    def __init__(self, model: Model, progress: Progress, preview_every: int):
        self.model, self.progress, self.preview_every = model, progress, preview_every
        self._shown: TokenState | None = None
        self._total, self._note = 1, ""
        self._result: Image.Image | None = None
        self._frames, self._started = FRAMES, time.perf_counter()

    def part(self, samples: range, batch: int) -> None:
        """Before the steps of ``samples`` of a batch. Says on the node that it was split."""
        self._shown = None
        if len(samples) < batch:
            which = f"{samples.start + 1} to {samples.stop}" if len(samples) > 1 else samples.stop
            self._note = f"[{which} of {batch}, since memory is short for all at once]\n\n"

    def __call__(self, index: int, total: int, step: Step) -> None:
        stop_if_interrupted()
        self._total = total
        wanted = self.preview_every and index % self.preview_every == 0
        picture = None
        if wanted and self.progress.picture_due:
            picture = veiled_picture(self.model, step.guess[:1], step.after[:1])
        self.progress.show(index + 1, total, picture)
        if self._shown is None:
            self._shown = step.state[:1]
        if self.progress.text_due:
            self._show_text(index + 1, total, step.after[:1])

    def finish(self, trajectory: Trajectory) -> None:
        """Show the result."""
        total, final = self._total, trajectory.final[:1]
        if self._note:
            self._note = "[in parts, since memory was short for all at once]\n\n"
        if self.preview_every:
            before = time.perf_counter()
            self._result = decode_image(self.model, final)[0]
            affordable = _SHARE * (before - self._started) / (time.perf_counter() - before)
            self._frames = min(max(int(affordable), FEWEST_FRAMES), FRAMES)
        self.progress.show(total, total, self._result)
        self._show_text(total, total, final)

    def recorded(self, trajectory: Trajectory) -> dict[str, list] | None:
        """The node's ui data, after :meth:`finish`: what the viewer scrubs over, if there is any.

        A list in a list, since the page takes a dict in a list for a file.
        """
        if not len(trajectory):
            return None
        steps = spread_steps(trajectory, self._frames)
        data: dict[str, Any] = recorded_text(self.model, trajectory, steps)
        data["total"], data["sheet"] = trajectory.total_steps, None
        if self._result:
            data["sheet"] = self._saved_sheet(steps, self._result)
        return {RECORDED_STEPS: [[data]]}

    def _show_text(self, done: int, total: int, state: TokenState) -> None:
        text = decode_text(self.model, state, masked=MASKED_TEXT)[0]
        words = words_since(self.model, state, self._shown)
        self.progress.show_words(done, total, words, f"{self._note}{text}")
        self._shown = state

    def _saved_sheet(self, steps: Sequence[Step], result: Image.Image) -> dict[str, Any]:
        """Where the pictures of ``steps`` lie, the last one being ``result``."""
        pictures = []
        for step in steps[:-1]:
            stop_if_interrupted()
            pictures.append(veiled_picture(self.model, step.guess[:1], step.after[:1]))
        pictures.append(result.copy())
        for picture in pictures:
            picture.thumbnail((_CELL, _CELL))
        file = save_temporary(contact_sheet(pictures, _COLUMNS))
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


def recorded_text(model: Model, trajectory: Trajectory, steps: Sequence[Step]) -> dict[str, Any]:
    """The first sample's words at ``steps``, of which the last one stands for the final state.

    ``steps``: their numbers, from 1. ``words``: the final text, one string per token. ``since``:
    the position in ``steps`` from which on each token is unmasked, -1 if it was from the start.
    """
    final = trajectory.final[:1]
    since = [len(steps)] * final.text.shape[1]
    states = [trajectory.initial, *(step.after for step in steps[:-1]), final]
    for frame, state in reversed(list(enumerate(states, start=-1))):
        for position, token in enumerate(state.text[0].tolist()):
            if token != MASKED:
                since[position] = frame
    return {
        "steps": [step.index + 1 for step in steps],
        "words": text_pieces(model, final)[0],
        "since": since,
    }

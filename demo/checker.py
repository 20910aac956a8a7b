"""Reads the answer back from pixels and words: exact, with no model involved."""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from .kinds import KINDS
from .render import PATCH, patches
from .scenes import BACKGROUNDS, COLOURS, CONTENTS, THINGS, Grid, Scene
from .tasks import Task
from .worlds import Verdict

_COLOUR = "|".join({*COLOURS, *BACKGROUNDS})
_REASON = re.compile(rf"(.+) (?:is|are) ({_COLOUR}) , so (.+)")


def parse_codes(image: Image.Image, grid: Grid) -> np.ndarray:
    """(h, w) int codes: the nearest patch of each cell, in mean squared error."""
    size = (grid[1] * PATCH, grid[0] * PATCH)
    pixels = np.asarray(image.convert("RGB").resize(size), dtype=np.float32)
    cells = pixels.reshape(grid[0], PATCH, grid[1], PATCH, 3).transpose(0, 2, 1, 3, 4)
    known = patches().reshape(len(patches()), -1).astype(np.float32)
    flat = cells.reshape(grid[0] * grid[1], -1)
    distance = (known**2).sum(1) - 2 * flat @ known.T
    return distance.argmin(1).reshape(grid)


def apply_sentence(sentence: str, before: Scene | None, grid: Grid) -> Scene | None:
    """The scene that ``sentence`` describes, given the input; ``None`` if it makes no sense."""
    words = sentence.strip().removesuffix(".").strip()
    reason = before and _REASON.fullmatch(words)
    if reason:
        thing, colour, words = reason.groups()
        if thing not in THINGS[colour] or not words.endswith(f" {colour}"):
            return None
    for kind in KINDS.values():
        match = re.fullmatch(kind.form, words) if kind.edits == (before is not None) else None
        if match:
            return kind.apply(before or Scene.empty(BACKGROUNDS[0], grid), *match.groups())
    return None


def check(task: Task, image: Image.Image, sentence: str) -> Verdict:
    """Judge one answer to ``task``: its picture (any size) and its sentence."""
    codes = parse_codes(image, task.after.grid)
    results = (task.after, *task.others)
    wanted = max((np.asarray(r.codes()) for r in results), key=lambda c: (codes == c).sum())
    said = apply_sentence(sentence, task.before, task.after.grid)
    return Verdict(
        picture=bool((codes == wanted).all()),
        sentence=said in results,
        agree=said is not None and bool((codes == np.asarray(said.codes())).all()),
        kept=_kept(task, codes, wanted),
    )


def _kept(task: Task, codes: np.ndarray, wanted: np.ndarray) -> float:
    """Share of untouched cells that are right; only contents count when the background changes."""
    if task.before is None:
        return 1.0
    before = np.asarray(task.before.codes())
    if task.before.background != task.after.background:
        contents = len(CONTENTS)
        return float((codes % contents == before % contents).mean())
    same = before == wanted
    return float((codes == before)[same].mean())

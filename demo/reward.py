"""The exact checker as a reward: how far the words decided so far describe the picture guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

import torch
from PIL import Image
from torch import Tensor

from ..mmp_core.errors import InputError
from ..mmp_core.variants.base import UNDECIDED
from ..training.cases import Pair
from . import world
from .checker import check, parse_codes
from .world import CONTENTS, Cell, Object, Scene, Task

_MOST_OBJECTS = 3


class CheckerReward:
    """0 … 1 per pair: the agreement that the paper's CLIP reward estimates, measured exactly.

    A final pair (progress 1) scores 1 where text and picture agree (``Verdict.agree``), else at
    most a half. Before that, and for the half: the share of decided words that stand where a
    sentence about the picture has them, for the sentence that fits best; an end of text before
    that sentence ends counts as a word that does not. Whether the edit is right plays no part.

    Raises ``InputError`` for a case that is not one of the toy world's.
    """

    name = "checker"

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        return torch.tensor([self._score(pair) for pair in pairs], dtype=torch.float32)

    def _score(self, pair: Pair) -> float:
        task = pair.case.facts
        if not isinstance(task, Task):
            raise InputError(
                f"{pair.case.name} is no task of the toy world, which alone the checker reward can "
                "judge: choose another reward, or train on the demo's data."
            )
        if pair.progress == 1 and check(task, pair.picture, pair.text).agree:
            return 1.0
        words = _words(pair.marked)
        fits = [_fit(words, s.split()) for s in sentences(task, pair.picture)]
        return max(fits, default=0.0) * (0.5 if pair.progress == 1 else 1.0)


def sentences(task: Task, picture: Image.Image) -> Iterator[str]:
    """What the world can truly say about how ``picture`` differs from the task's input, or, for
    generation, about what it shows. Nothing where it is no scene or no single edit leads to it."""
    scene = read_scene(picture, task.after.grid)
    if scene is None:
        return
    if task.before is None:
        yield from _descriptions(scene)
    elif scene.background != task.before.background:
        if scene.cells == task.before.cells:
            yield from _reasoned("the background becomes", scene.background)
    else:
        yield from _edits(task.before, scene)


def read_scene(picture: Image.Image, grid: tuple[int, int]) -> Scene | None:
    """The scene that ``picture`` shows; ``None`` where its cells differ in background."""
    backgrounds, contents = divmod(parse_codes(picture, grid), len(CONTENTS))
    if (backgrounds != backgrounds.flat[0]).any():
        return None
    cells = tuple(tuple(CONTENTS[c] for c in row) for row in contents)
    return Scene(world.BACKGROUNDS[backgrounds.flat[0]], cells)


def _descriptions(scene: Scene) -> Iterator[str]:
    objects = scene.objects()
    if 1 <= len(objects) <= _MOST_OBJECTS:
        for order in permutations(objects.items()):
            said = " and ".join(f"{world.a(item)} at {world.place(cell)}" for cell, item in order)
            yield f"{said} on {scene.background} ."


def _edits(before: Scene, after: Scene) -> Iterator[str]:
    height, width = before.grid
    everywhere = ((r, c) for r in range(height) for c in range(width))
    changed = {c: (before.at(c), after.at(c)) for c in everywhere if before.at(c) != after.at(c)}
    if all(new is None for _, new in changed.values()):
        yield from _removals(before, set(changed))
    if len(changed) == 1:
        ((cell, (old, new)),) = changed.items()
        yield from _change(cell, old, new)
    if len(changed) == 2:
        a, b = changed
        for start, end in ((a, b), (b, a)):
            item = before.at(start)
            if item and changed[start][1] is None and changed[end] == (None, item):
                yield f"{world.object_at(start, item)} moves to {world.place(end)} ."


def _change(cell: Cell, old: Object | None, new: Object | None) -> Iterator[str]:
    if old is None:
        yield f"{world.a(new)} appears at {world.place(cell)} ."
    elif new is None:
        yield f"{world.object_at(cell, old)} goes away ."
    else:
        yield f"{world.object_at(cell, old)} becomes {world.a(new)} ."
        if old[0] == new[0]:
            yield from _reasoned(f"{world.object_at(cell, old)} becomes", new[1])


def _removals(before: Scene, gone: set[Cell]) -> Iterator[str]:
    names = {c: f"{c} objects" for c in world.COLOURS} | world.PLURALS
    for group, plural in names.items():
        if gone and gone == {c for c, item in before.objects().items() if group in item}:
            yield f"{len(gone)} {plural} go away ."


def _reasoned(change: str, colour: str) -> Iterator[str]:
    yield f"{change} {colour} ."
    for thing in world.THINGS[colour]:
        verb = "is" if thing in world.SINGULAR else "are"
        yield f"{thing} {verb} {colour} , so {change} {colour} ."


def _words(text: str) -> list[str]:
    return text.replace(".", " . ").replace(",", " , ").split()


def _fit(words: list[str], sentence: list[str]) -> float:
    """Share of the decided ``words`` that ``sentence`` has at the same place."""
    decided = [(i, word) for i, word in enumerate(words) if word != UNDECIDED]
    ended_early = max(0, len(sentence) - len(words))
    right = sum(i < len(sentence) and sentence[i] == word for i, word in decided)
    return right / max(1, len(decided) + ended_early)

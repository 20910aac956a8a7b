"""A world's judge as a reward: how far the words unmasked so far describe the picture guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..mmp_core.errors import InputError
from ..mmp_core.variants.base import MASKED_TEXT
from ..training.cases import Pair
from .checker import parse_codes
from .kinds import KINDS
from .scenes import BACKGROUNDS, CONTENTS, Grid, Scene
from .tasks import Task
from .worlds import AnyTask


class CheckerReward:
    """0 … 1 per pair: the agreement that the paper's CLIP reward estimates, measured exactly.

    A final pair (progress 1) scores 1 where text and picture agree (``Verdict.agree``), else at
    most a half. Before that, and for the half: the share of unmasked words that stand where a
    sentence about the picture has them, for the sentence that fits best; an end of text before
    that sentence ends counts as a word that does not. Whether the edit is right plays no part.

    Raises ``InputError`` for a case that is not of a world with a judge.
    """

    name = "checker"

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        return torch.tensor([self._score(pair) for pair in pairs], dtype=torch.float32)

    def _score(self, pair: Pair) -> float:
        task = pair.case.facts
        if not isinstance(task, AnyTask):
            raise InputError(
                f"{pair.case.name} is not a task of the toy world, and the checker reward can "
                "judge nothing else: choose another reward, or train on the demo's data."
            )
        if pair.progress == 1 and task.check(pair.picture, pair.text).agree:
            return 1.0
        words = _words(pair.marked)
        fits = [_fit(words, s.split()) for s in task.truths(pair.picture)]
        return max(fits, default=0.0) * (0.5 if pair.progress == 1 else 1.0)


def sentences(task: Task, picture: Image.Image) -> Iterator[str]:
    """What the world can truly say about how ``picture`` differs from the task's input, or, for
    generation, about what it shows. Nothing where it is no scene or no single edit leads to it."""
    scene = read_scene(picture, task.after.grid)
    if scene is not None:
        for kind in KINDS.values():
            if kind.edits == (task.before is not None):
                yield from kind.sentences(task.before or scene, scene)


def read_scene(picture: Image.Image, grid: Grid) -> Scene | None:
    """The scene that ``picture`` shows; ``None`` where its cells differ in background."""
    backgrounds, contents = divmod(parse_codes(picture, grid), len(CONTENTS))
    if (backgrounds != backgrounds.flat[0]).any():
        return None
    cells = tuple(tuple(CONTENTS[c] for c in row) for row in contents)
    return Scene(BACKGROUNDS[backgrounds.flat[0]], cells)


def _words(text: str) -> list[str]:
    return text.replace(".", " . ").replace(",", " , ").split()


def _fit(words: list[str], sentence: list[str]) -> float:
    """Share of the unmasked ``words`` that ``sentence`` has at the same place."""
    unmasked = [(i, word) for i, word in enumerate(words) if word != MASKED_TEXT]
    ended_early = max(0, len(sentence) - len(words))
    right = sum(i < len(sentence) and sentence[i] == word for i, word in unmasked)
    return right / max(1, len(unmasked) + ended_early)

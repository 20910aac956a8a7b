"""Tasks of the toy world by number, the same on every machine, and all the words it can say.

A task is a scene, an instruction and, as ``checker.py`` can tell exactly, the right results.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from .kinds import KINDS
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    CORNERS,
    NEIGHBOURS,
    PLURALS,
    SHAPES,
    THINGS,
    Grid,
    random_scene,
)
from .tasks import Task

GRIDS: tuple[Grid, ...] = ((4, 4), (3, 4), (4, 3), (3, 3), (4, 5), (5, 4))
"""Grids the demo is trained on: the first half of the time (4, 4), else any of the others."""


def task(seed: int, *, grid: Grid = (4, 4), kinds: Sequence[str] | None = None) -> Task:
    """The task numbered ``seed``, the same on every machine."""
    rng = random.Random(seed)
    kind = KINDS[rng.choice(kinds or tuple(KINDS))]
    return kind.make(rng, random_scene(rng, grid))


def words() -> list[str]:
    """Every word the world can say, sorted: the demo tokenizer's vocabulary."""
    spoken = " ".join(thing for things in THINGS.values() for thing in things).split()
    spoken += [*SHAPES, *COLOURS, *BACKGROUNDS, *PLURALS.values(), *map(str, range(1, 10))]
    always = "the a an object at row column in corner colour of is are , so ."
    of_kinds = (kind.words for kind in KINDS.values())
    spoken += " ".join((always, *NEIGHBOURS, *CORNERS, *of_kinds)).split()
    return sorted(set(spoken))

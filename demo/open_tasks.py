"""Tasks of the toy world that leave something open, for ParaRL: where, which one, or what colour.

Several results are right, and equally likely as targets. Text and picture are sampled at the same
time, so that each can be right without the other saying the same: what ParaRL is for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from .scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Grid,
    Object,
    Scene,
    a,
    description,
    object_at,
    pick,
    place,
    random_scene,
)
from .tasks import Task

Result = tuple[str, Scene]
"""A sentence and the scene that it leads to."""


def task(seed: int, *, grid: Grid = (4, 4)) -> Task:
    """The open task numbered ``seed``, the same on every machine."""
    rng = random.Random(f"open {seed}")
    kind = rng.choice(tuple(KINDS))
    scene = random_scene(rng, grid)
    instruction, results = KINDS[kind](rng, scene)
    right = sorted(results, key=lambda result: result[0])
    sentence, after = rng.choice(right)
    others = tuple(other for _, other in right if other != after)
    return Task(kind, instruction, None if kind == "generate" else scene, sentence, after, others)


def _item(rng: random.Random) -> Object:
    return rng.choice(SHAPES), rng.choice(COLOURS)


def recolour(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """To any other colour."""
    cell, (shape, old), name = pick(rng, scene)
    return f"paint {name}", (
        (f"{object_at(cell, (shape, old))} becomes {new} .", scene.with_cells({cell: (shape, new)}))
        for new in COLOURS
        if new != old
    )


def swap(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """Into a given shape, of any colour."""
    cell, item, name = pick(rng, scene)
    shape = rng.choice([s for s in SHAPES if s != item[0]])
    news = ((shape, colour) for colour in COLOURS)
    return f"turn {name} into a {shape}", (
        (f"{object_at(cell, item)} becomes {a(new)} .", scene.with_cells({cell: new}))
        for new in news
    )


def move(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """To any empty cell."""
    cell, item, name = pick(rng, scene)
    return f"move {name}", (
        (
            f"{object_at(cell, item)} moves to {place(to)} .",
            scene.with_cells({cell: None, to: item}),
        )
        for to in scene.empty_cells()
    )


def add(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """In any empty cell."""
    item = _item(rng)
    return f"add {a(item)}", (
        (f"{a(item)} appears at {place(cell)} .", scene.with_cells({cell: item}))
        for cell in scene.empty_cells()
    )


def remove(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """Any object."""
    return f"{rng.choice(['remove', 'delete'])} an object", (
        (f"{object_at(cell, item)} goes away .", scene.with_cells({cell: None}))
        for cell, item in scene.objects().items()
    )


def generate(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """One object anywhere on a given background. Only the grid of ``scene`` is used."""
    empty = Scene.empty(rng.choice(BACKGROUNDS), scene.grid)
    item = _item(rng)
    return f"draw {a(item)} on {empty.background}", (
        (f"{description(empty, {cell: item})} .", empty.with_cells({cell: item}))
        for cell in empty.empty_cells()
    )


KINDS: dict[str, Callable[[random.Random, Scene], tuple[str, Iterator[Result]]]] = {
    "recolour": recolour,
    "replace": swap,
    "move": move,
    "add": add,
    "remove": remove,
    "generate": generate,
}

"""Tasks of the toy world that leave something open: where, which one, or what colour.

Several results are right, and equally likely as targets. Text and picture are sampled at the same
time, so that each can be right without the other saying the same: what ParaRL is for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from . import world
from .world import BACKGROUNDS, COLOURS, SHAPES, Cell, Object, Scene, Task

Result = tuple[str, Scene]
"""A sentence and the scene that it leads to."""


def task(seed: int, *, grid: tuple[int, int] = (4, 4)) -> Task:
    """The open task numbered ``seed``, the same on every machine."""
    rng = random.Random(f"open {seed}")
    kind = rng.choice(tuple(KINDS))
    scene = world.random_scene(rng, grid)
    instruction, results = KINDS[kind](rng, scene)
    right = sorted(results, key=lambda result: result[0])
    sentence, after = rng.choice(right)
    others = tuple(other for _, other in right if other != after)
    return Task(kind, instruction, None if kind == "generate" else scene, sentence, after, others)


def _empty(scene: Scene) -> Iterator[Cell]:
    height, width = scene.grid
    return ((r, c) for r in range(height) for c in range(width) if scene.at((r, c)) is None)


def _item(rng: random.Random) -> Object:
    return rng.choice(SHAPES), rng.choice(COLOURS)


def recolour(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """To any other colour."""
    cell, (shape, old), name = world.pick(rng, scene)
    return f"paint {name}", (
        (
            f"{world.object_at(cell, (shape, old))} becomes {new} .",
            scene.with_cells({cell: (shape, new)}),
        )
        for new in COLOURS
        if new != old
    )


def swap(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """Into a given shape, of any colour."""
    cell, item, name = world.pick(rng, scene)
    shape = rng.choice([s for s in SHAPES if s != item[0]])
    news = ((shape, colour) for colour in COLOURS)
    return f"turn {name} into a {shape}", (
        (f"{world.object_at(cell, item)} becomes {world.a(new)} .", scene.with_cells({cell: new}))
        for new in news
    )


def move(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """To any empty cell."""
    cell, item, name = world.pick(rng, scene)
    return f"move {name}", (
        (
            f"{world.object_at(cell, item)} moves to {world.place(to)} .",
            scene.with_cells({cell: None, to: item}),
        )
        for to in _empty(scene)
    )


def add(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """In any empty cell."""
    item = _item(rng)
    return f"add {world.a(item)}", (
        (f"{world.a(item)} appears at {world.place(cell)} .", scene.with_cells({cell: item}))
        for cell in _empty(scene)
    )


def remove(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """Any object."""
    return f"{rng.choice(['remove', 'delete'])} an object", (
        (f"{world.object_at(cell, item)} goes away .", scene.with_cells({cell: None}))
        for cell, item in scene.objects().items()
    )


def generate(rng: random.Random, scene: Scene) -> tuple[str, Iterator[Result]]:
    """One object anywhere on a given background. Only the grid of ``scene`` is used."""
    height, width = scene.grid
    empty = Scene(rng.choice(BACKGROUNDS), tuple((None,) * width for _ in range(height)))
    item = _item(rng)
    return f"draw {world.a(item)} on {empty.background}", (
        (
            f"{world.a(item)} at {world.place(cell)} on {empty.background} .",
            empty.with_cells({cell: item}),
        )
        for cell in _empty(empty)
    )


KINDS: dict[str, Callable[[random.Random, Scene], tuple[str, Iterator[Result]]]] = {
    "recolour": recolour,
    "replace": swap,
    "move": move,
    "add": add,
    "remove": remove,
    "generate": generate,
}

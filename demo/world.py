"""The toy world: scenes on a grid, edits that need a little reasoning, words for both.

A scene is a background and, in some cells, one object (a coloured shape). Every edit has exactly
one right result (in ``open_world.py``: a known few), so pictures and sentences can be checked
exactly (see ``checker.py``).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
BACKGROUNDS = ("white", "black", "green", "blue")
CONTENTS = (None, *((shape, colour) for shape in SHAPES for colour in COLOURS))

THINGS = {
    "red": ("tomatoes", "blood"),
    "orange": ("carrots", "pumpkins"),
    "yellow": ("bananas", "lemons"),
    "green": ("grass", "frogs"),
    "blue": ("sapphires", "the sea"),
    "purple": ("grapes", "plums"),
    "white": ("snow", "milk"),
    "black": ("coal", "soot"),
}
SINGULAR = {"blood", "grass", "the sea", "snow", "milk", "coal", "soot"}
NEIGHBOURS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
CORNERS = ("top left", "top right", "bottom left", "bottom right")

Object = tuple[str, str]
Cell = tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """``cells``: rows of objects ``(shape, colour)`` or ``None``."""

    background: str
    cells: tuple[tuple[Object | None, ...], ...]

    @property
    def grid(self) -> tuple[int, int]:
        return len(self.cells), len(self.cells[0])

    def at(self, cell: Cell) -> Object | None:
        return self.cells[cell[0]][cell[1]]

    def objects(self) -> dict[Cell, Object]:
        return {
            (r, c): item
            for r, row in enumerate(self.cells)
            for c, item in enumerate(row)
            if item is not None
        }

    def with_cells(self, changes: dict[Cell, Object | None]) -> Scene:
        rows = [list(row) for row in self.cells]
        for (r, c), item in changes.items():
            rows[r][c] = item
        return replace(self, cells=tuple(map(tuple, rows)))

    def codes(self) -> list[list[int]]:
        """Codebook index of each cell: background-major, contents in ``CONTENTS`` order."""
        start = BACKGROUNDS.index(self.background) * len(CONTENTS)
        return [[start + CONTENTS.index(item) for item in row] for row in self.cells]


@dataclass(frozen=True)
class Task:
    """One held-out or training case. ``before`` is ``None`` for generation from words alone.

    ``others``: results that are as right as ``after``, where the instruction leaves it open.
    """

    kind: str
    instruction: str
    before: Scene | None
    sentence: str
    after: Scene
    others: tuple[Scene, ...] = ()


def random_scene(rng: random.Random, grid: tuple[int, int]) -> Scene:
    height, width = grid
    cells: dict[Cell, Object | None] = {}
    places = [(r, c) for r in range(height) for c in range(width)]
    for cell in rng.sample(places, rng.randint(2, min(6, len(places) - 2))):
        cells[cell] = (rng.choice(SHAPES), rng.choice(COLOURS))
    empty = Scene(rng.choice(BACKGROUNDS), tuple((None,) * width for _ in range(height)))
    return empty.with_cells(cells)


def a(item: Object) -> str:
    """``item`` in words with its article: "an orange star"."""
    shape, colour = item
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def place(cell: Cell) -> str:
    return f"row {cell[0] + 1} column {cell[1] + 1}"


def object_at(cell: Cell, item: Object) -> str:
    """``item`` in words with its place: "the orange star at row 1 column 2"."""
    return f"the {item[1]} {item[0]} at {place(cell)}"


def corner(name: str, grid: tuple[int, int]) -> Cell:
    return (
        0 if name.startswith("top") else grid[0] - 1,
        0 if name.endswith("left") else grid[1] - 1,
    )


def _inside(cell: Cell, grid: tuple[int, int]) -> bool:
    return 0 <= cell[0] < grid[0] and 0 <= cell[1] < grid[1]


def _plain_references(scene: Scene, cell: Cell) -> list[str]:
    """Names by colour and shape that fit only the object in ``cell``."""
    shape, colour = scene.at(cell)
    others = [item for at, item in scene.objects().items() if at != cell]
    names = []
    if (shape, colour) not in others:
        names.append(f"the {colour} {shape}")
    if all(other[0] != shape for other in others):
        names.append(f"the {shape}")
    if all(other[1] != colour for other in others):
        names.append(f"the {colour} object")
    return names


def _references(scene: Scene, cell: Cell) -> list[str]:
    """All names that fit only the object in ``cell``, relational ones included."""
    names = _plain_references(scene, cell)
    shape = scene.at(cell)[0]
    for relation, (dr, dc) in NEIGHBOURS.items():
        anchor = (cell[0] - dr, cell[1] - dc)
        if _inside(anchor, scene.grid) and scene.at(anchor) is not None:
            for name in _plain_references(scene, anchor):
                names.append(f"the object {relation} {name}")
                names.append(f"the {shape} {relation} {name}")
    return names or [f"the object at {place(cell)}"]


def pick(rng: random.Random, scene: Scene) -> tuple[Cell, Object, str]:
    """One of the objects: its cell, itself, and a name that fits only it."""
    cell, item = rng.choice(sorted(scene.objects().items()))
    return cell, item, rng.choice(_references(scene, cell))


def _colour_words(rng: random.Random, colour: str) -> tuple[str, str]:
    """How the instruction names ``colour``, and the reasoning that opens the sentence."""
    if rng.random() < 0.4:
        thing = rng.choice(THINGS[colour])
        verb = "is" if thing in SINGULAR else "are"
        return f"the colour of {thing}", f"{thing} {verb} {colour} , so "
    return colour, ""


def _empty_target(rng: random.Random, scene: Scene, without: Cell | None) -> tuple[Cell, str]:
    """An empty cell and words for it: a row and column, a corner, or beside an object."""
    options: list[tuple[Cell, str]] = []
    for name in CORNERS:
        if scene.at(corner(name, scene.grid)) is None:
            options.append((corner(name, scene.grid), f"in the {name} corner"))
    for anchor in scene.objects():
        if anchor == without:
            continue
        for relation, (dr, dc) in NEIGHBOURS.items():
            cell = (anchor[0] + dr, anchor[1] + dc)
            if _inside(cell, scene.grid) and scene.at(cell) is None:
                options += [(cell, f"{relation} {n}") for n in _plain_references(scene, anchor)]
    if not options or rng.random() < 0.25:
        height, width = scene.grid
        empty = [(r, c) for r in range(height) for c in range(width) if scene.at((r, c)) is None]
        cell = rng.choice(empty)
        return cell, f"at {place(cell)}"
    return rng.choice(options)


def recolour(rng: random.Random, scene: Scene) -> Task:
    cell, (shape, colour), name = pick(rng, scene)
    new = rng.choice([c for c in COLOURS if c != colour])
    words, reason = _colour_words(rng, new)
    instruction = rng.choice([f"make {name} {words}", f"paint {name} {words}"])
    sentence = f"{reason}the {colour} {shape} at {place(cell)} becomes {new} ."
    return Task("recolour", instruction, scene, sentence, scene.with_cells({cell: (shape, new)}))


def swap(rng: random.Random, scene: Scene) -> Task:
    cell, (shape, colour), name = pick(rng, scene)
    new = (rng.choice([s for s in SHAPES if s != shape]), rng.choice(COLOURS))
    instruction = rng.choice([f"replace {name} with {a(new)}", f"turn {name} into {a(new)}"])
    sentence = f"the {colour} {shape} at {place(cell)} becomes {a(new)} ."
    return Task("replace", instruction, scene, sentence, scene.with_cells({cell: new}))


def move(rng: random.Random, scene: Scene) -> Task:
    cell, (shape, colour), name = pick(rng, scene)
    steps = {
        word: (cell[0] + dr, cell[1] + dc)
        for word, (dr, dc) in STEPS.items()
        if _inside((cell[0] + dr, cell[1] + dc), scene.grid)
        and scene.at((cell[0] + dr, cell[1] + dc)) is None
    }
    if steps and rng.random() < 0.5:
        word = rng.choice(sorted(steps))
        target, where = steps[word], f"one step {word}"
    else:
        target, where = _empty_target(rng, scene, without=cell)
        where = f"to {where}" if where.startswith(("at", "in")) else where
    where = where.replace("to at ", "to ").replace("to in ", "to ")
    sentence = f"the {colour} {shape} at {place(cell)} moves to {place(target)} ."
    after = scene.with_cells({cell: None, target: (shape, colour)})
    return Task("move", f"move {name} {where}", scene, sentence, after)


def add(rng: random.Random, scene: Scene) -> Task:
    target, where = _empty_target(rng, scene, without=None)
    item = (rng.choice(SHAPES), rng.choice(COLOURS))
    sentence = f"{a(item)} appears at {place(target)} ."
    instruction = f"{rng.choice(['add', 'draw'])} {a(item)} {where}"
    return Task("add", instruction, scene, sentence, scene.with_cells({target: item}))


def remove(rng: random.Random, scene: Scene) -> Task:
    cell, (shape, colour), name = pick(rng, scene)
    sentence = f"the {colour} {shape} at {place(cell)} goes away ."
    instruction = f"{rng.choice(['remove', 'delete'])} {name}"
    return Task("remove", instruction, scene, sentence, scene.with_cells({cell: None}))


def count(rng: random.Random, scene: Scene) -> Task:
    """Remove all objects of one shape or colour; the sentence counts them."""
    parts = [part for item in scene.objects().values() for part in item]
    group = rng.choice(sorted({p for p in parts if parts.count(p) > 1} or set(parts)))
    cells = [cell for cell, item in scene.objects().items() if group in item]
    words = f"{group} objects" if group in COLOURS else PLURALS[group]
    sentence = f"{len(cells)} {words} go away ."
    after = scene.with_cells(dict.fromkeys(cells))
    return Task("count", f"count and remove all {words}", scene, sentence, after)


def background(rng: random.Random, scene: Scene) -> Task:
    new = rng.choice([b for b in BACKGROUNDS if b != scene.background])
    words, reason = _colour_words(rng, new)
    instruction = rng.choice([f"make the background {words}", f"paint the background {words}"])
    sentence = f"{reason}the background becomes {new} ."
    return Task("background", instruction, scene, sentence, replace(scene, background=new))


def generate(rng: random.Random, scene: Scene) -> Task:
    """A picture from words alone: one or two objects on a background. Only the grid is used."""
    height, width = scene.grid
    empty = Scene(rng.choice(BACKGROUNDS), tuple((None,) * width for _ in range(height)))
    places = [(r, c) for r in range(height) for c in range(width)]
    objects = {
        cell: (rng.choice(SHAPES), rng.choice(COLOURS))
        for cell in sorted(rng.sample(places, rng.randint(1, 2)))
    }
    named_corners = {corner(name, scene.grid): f"in the {name} corner" for name in CORNERS}
    words = [
        f"{a(item)} {named_corners.get(cell) or 'at ' + place(cell)}"
        for cell, item in objects.items()
    ]
    said = [f"{a(item)} at {place(cell)}" for cell, item in objects.items()]
    shown = f"{' and '.join(words)} on {empty.background}"
    sentence = f"{' and '.join(said)} on {empty.background} ."
    return Task("generate", f"draw {shown}", None, sentence, empty.with_cells(objects))


KINDS: dict[str, Callable[[random.Random, Scene], Task]] = {
    "recolour": recolour,
    "replace": swap,
    "move": move,
    "add": add,
    "remove": remove,
    "count": count,
    "background": background,
    "generate": generate,
}
GRIDS = ((4, 4), (3, 4), (4, 3), (3, 3), (4, 5), (5, 4))
"""Grids the demo is trained on: the first half of the time (4, 4), else any of the others."""


def task(
    seed: int, *, grid: tuple[int, int] = (4, 4), kinds: tuple[str, ...] | None = None
) -> Task:
    """The task numbered ``seed``, the same on every machine."""
    rng = random.Random(seed)
    kind = rng.choice(kinds or tuple(KINDS))
    return KINDS[kind](rng, random_scene(rng, grid))


def words() -> list[str]:
    """Every word the world can say, sorted: the demo tokenizer's vocabulary."""
    spoken = set(" ".join(THINGS[c][i] for c in THINGS for i in range(2)).split())
    spoken |= {*SHAPES, *COLOURS, *BACKGROUNDS, *PLURALS.values(), *map(str, range(1, 10))}
    for text in (
        "make paint replace with a an turn into move to one step up down left right of above below",
        "add draw remove delete count and all objects object the background colour at row column",
        "in top bottom corner on is are go goes away , so becomes moves appears .",
    ):
        spoken |= set(text.split())
    return sorted(spoken)

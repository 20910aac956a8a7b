"""What the toy world looks like: coloured shapes on a grid, and words for them and their places."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from PIL import Image

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
"""Two things of each colour, which instructions may name instead of it."""
_SINGULAR = {"blood", "grass", "the sea", "snow", "milk", "coal", "soot"}
NEIGHBOURS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
CORNERS = ("top left", "top right", "bottom left", "bottom right")

Object = tuple[str, str]
"""Shape and colour."""
Cell = tuple[int, int]
"""Row and column, from 0."""
Grid = tuple[int, int]
"""Rows and columns."""


@dataclass(frozen=True)
class Scene:
    """``cells``: rows of objects, ``None`` where a cell is empty."""

    background: str
    cells: tuple[tuple[Object | None, ...], ...]

    @classmethod
    def empty(cls, background: str, grid: Grid) -> Scene:
        return cls(background, tuple((None,) * grid[1] for _ in range(grid[0])))

    @property
    def grid(self) -> Grid:
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

    def all_cells(self) -> list[Cell]:
        return [(r, c) for r, row in enumerate(self.cells) for c in range(len(row))]

    def empty_cells(self) -> list[Cell]:
        return [cell for cell in self.all_cells() if self.at(cell) is None]

    def holds(self, cell: Cell) -> bool:
        """Whether ``cell`` lies on the grid."""
        return 0 <= cell[0] < self.grid[0] and 0 <= cell[1] < self.grid[1]

    def with_cells(self, changes: Mapping[Cell, Object | None]) -> Scene:
        rows = [list(row) for row in self.cells]
        for (r, c), item in changes.items():
            rows[r][c] = item
        return replace(self, cells=tuple(map(tuple, rows)))

    def changes(self, after: Scene) -> dict[Cell, tuple[Object | None, Object | None]]:
        """The cells whose content differs in ``after``: their old and new content."""
        pairs = {cell: (self.at(cell), after.at(cell)) for cell in self.all_cells()}
        return {cell: pair for cell, pair in pairs.items() if pair[0] != pair[1]}

    def picture(self) -> Image.Image:
        from .render import render

        return render(self)

    def large(self, side: int) -> Image.Image:
        from .render import enlarged

        return enlarged(self, side // self.grid[1])

    def codes(self) -> list[list[int]]:
        """Codebook index of each cell: background-major, contents in ``CONTENTS`` order."""
        start = BACKGROUNDS.index(self.background) * len(CONTENTS)
        return [[start + CONTENTS.index(item) for item in row] for row in self.cells]


def random_scene(rng: random.Random, grid: Grid) -> Scene:
    """A scene of 2 to 6 objects, two cells at least left empty."""
    empty_cells = Scene.empty("white", grid).all_cells()
    objects: dict[Cell, Object] = {}
    for cell in rng.sample(empty_cells, rng.randint(2, min(6, len(empty_cells) - 2))):
        objects[cell] = (rng.choice(SHAPES), rng.choice(COLOURS))
    return Scene.empty(rng.choice(BACKGROUNDS), grid).with_cells(objects)


def a(item: Object) -> str:
    """``item`` in words with its article: "an orange star"."""
    shape, colour = item
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def place(cell: Cell) -> str:
    return f"row {cell[0] + 1} column {cell[1] + 1}"


def object_at(cell: Cell, item: Object) -> str:
    """``item`` in words with its place: "the orange star at row 1 column 2"."""
    return f"the {item[1]} {item[0]} at {place(cell)}"


def corner(name: str, grid: Grid) -> Cell:
    return (
        0 if name.startswith("top") else grid[0] - 1,
        0 if name.endswith("left") else grid[1] - 1,
    )


def is_coloured(thing: str, colour: str) -> str:
    """ "grass is green", "bananas are yellow"."""
    return f"{thing} {'is' if thing in _SINGULAR else 'are'} {colour}"


def plain_names(scene: Scene, cell: Cell) -> list[str]:
    """Names by colour and shape that fit only the object in ``cell``."""
    objects = scene.objects()
    shape, colour = objects.pop(cell)
    others = list(objects.values())
    names = []
    if (shape, colour) not in others:
        names.append(f"the {colour} {shape}")
    if all(other[0] != shape for other in others):
        names.append(f"the {shape}")
    if all(other[1] != colour for other in others):
        names.append(f"the {colour} object")
    return names


def names(scene: Scene, cell: Cell) -> list[str]:
    """All names that fit only the object in ``cell``, by its neighbours included."""
    fitting = plain_names(scene, cell)
    shape = scene.objects()[cell][0]
    for relation, (dr, dc) in NEIGHBOURS.items():
        anchor = (cell[0] - dr, cell[1] - dc)
        if scene.holds(anchor) and scene.at(anchor) is not None:
            for name in plain_names(scene, anchor):
                fitting.append(f"the object {relation} {name}")
                fitting.append(f"the {shape} {relation} {name}")
    return fitting or [f"the object at {place(cell)}"]


def pick(rng: random.Random, scene: Scene) -> tuple[Cell, Object, str]:
    """One of the objects: its cell, itself, and a name that fits only it."""
    cell, item = rng.choice(sorted(scene.objects().items()))
    return cell, item, rng.choice(names(scene, cell))


def colour_words(rng: random.Random, colour: str) -> tuple[str, str]:
    """How the instruction names ``colour``, and the reasoning that opens the sentence."""
    if rng.random() < 0.4:
        thing = rng.choice(THINGS[colour])
        return f"the colour of {thing}", f"{is_coloured(thing, colour)} , so "
    return colour, ""


def empty_target(rng: random.Random, scene: Scene, without: Cell | None) -> tuple[Cell, str]:
    """An empty cell and words for it: a row and column, a corner, or beside an object but
    ``without``."""
    options: list[tuple[Cell, str]] = []
    for name in CORNERS:
        if scene.at(corner(name, scene.grid)) is None:
            options.append((corner(name, scene.grid), f"in the {name} corner"))
    for anchor in scene.objects():
        if anchor == without:
            continue
        for relation, (dr, dc) in NEIGHBOURS.items():
            cell = (anchor[0] + dr, anchor[1] + dc)
            if scene.holds(cell) and scene.at(cell) is None:
                options += [(cell, f"{relation} {n}") for n in plain_names(scene, anchor)]
    if not options or rng.random() < 0.25:
        cell = rng.choice(scene.empty_cells())
        return cell, f"at {place(cell)}"
    return rng.choice(options)


def reasoned(change: str, colour: str) -> Iterator[str]:
    yield f"{change} {colour} ."
    for thing in THINGS[colour]:
        yield f"{is_coloured(thing, colour)} , so {change} {colour} ."


def description(scene: Scene, objects: dict[Cell, Object]) -> str:
    listed = " and ".join(f"{a(item)} at {place(cell)}" for cell, item in objects.items())
    return f"{listed} on {scene.background}"

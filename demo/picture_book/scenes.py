"""What the picture book shows: things with a colour and a size in a landscape, and their codes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

TIMES = ("day", "dusk", "night")
GROUNDS = ("meadow", "sand", "snow", "sea")
SIZES = ("small", "big")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
COLUMNS = ("far left", "left", "right", "far right")
LAND = ("house", "tree", "boat", "car", "cat", "flower")
SKY = ("balloon", "kite", "cloud", "sun")
KINDS = (*LAND, *SKY)
"""At most one of a kind is in a scene, so that its kind names a thing."""
PLAIN = ("cloud", "sun")
"""Kinds that have one colour only, and need no word for it."""

PATCH, GRID = 32, 8
"""Pixels along a code's patch, and patches along a picture."""
BOX = (3, 2)
"""Rows and columns of patches that a slot covers."""
TOPS = {"sky": 0, "ground": 4}
"""First row of patches of the slots in the sky and on the ground; rows 3 and 7 stay free."""


@dataclass(frozen=True)
class Thing:
    """``colour``: "" for a kind in ``PLAIN``."""

    kind: str
    colour: str
    size: str

    @property
    def layer(self) -> str:
        return "sky" if self.kind in SKY else "ground"


@dataclass(frozen=True)
class Slot:
    """Where one thing can be: ``layer`` "sky" or "ground", ``column`` from 0."""

    layer: str
    column: int


SLOTS = tuple(Slot(layer, column) for layer in TOPS for column in range(len(COLUMNS)))
CONTENTS = {
    layer: tuple(
        Thing(kind, colour, size)
        for kind in kinds
        for colour in (("",) if kind in PLAIN else COLOURS)
        for size in SIZES
    )
    for layer, kinds in (("sky", SKY), ("ground", LAND))
}
"""All things that a slot of each layer can hold."""


@dataclass(frozen=True)
class Scene:
    """``things``: what each of ``SLOTS`` holds, ``None`` for nothing."""

    time: str
    ground: str
    things: tuple[Thing | None, ...] = (None,) * len(SLOTS)

    def at(self, slot: Slot) -> Thing | None:
        return self.things[SLOTS.index(slot)]

    def placed(self) -> dict[Slot, Thing]:
        return {slot: thing for slot, thing in zip(SLOTS, self.things, strict=True) if thing}

    def slot_of(self, kind: str) -> Slot | None:
        return next((slot for slot, thing in self.placed().items() if thing.kind == kind), None)

    def empty_slots(self, layer: str) -> list[Slot]:
        return [slot for slot in SLOTS if slot.layer == layer and self.at(slot) is None]

    def having(self, changes: dict[Slot, Thing | None]) -> Scene:
        contents = zip(SLOTS, self.things, strict=True)
        return replace(self, things=tuple(changes.get(slot, thing) for slot, thing in contents))

    def codes(self) -> list[list[int]]:
        """(8, 8) codebook indices."""
        codes = _background_codes(self.time, self.ground).copy()
        for slot, thing in self.placed().items():
            top, left = TOPS[slot.layer], slot.column * BOX[1]
            box = codes[top : top + BOX[0], left : left + BOX[1]]
            own = thing_codes(thing)
            box[own >= 0] = own[own >= 0]
        return codes.tolist()

    def picture(self) -> Image.Image:
        """256×256 pixels."""
        from .drawing import paint

        return Image.fromarray(paint(self))

    def large(self, side: int) -> Image.Image:
        return self.picture().resize((side, side), Image.Resampling.LANCZOS)


SKY_ROWS = TOPS["ground"]
"""Rows of patches whose code tells the time; those below tell the ground."""
_GROUND_ROWS = GRID - SKY_ROWS
FIRST_THING = GRID * (len(TIMES) * SKY_ROWS + len(GROUNDS) * _GROUND_ROWS)
"""The code of the first thing's first patch; codes of the landscape come before it."""


@functools.cache
def _background_codes(time: str, ground: str) -> np.ndarray:
    sky = TIMES.index(time) * SKY_ROWS * GRID + np.arange(SKY_ROWS * GRID)
    first = len(TIMES) * SKY_ROWS * GRID + GROUNDS.index(ground) * _GROUND_ROWS * GRID
    return np.concatenate((sky, first + np.arange(_GROUND_ROWS * GRID))).reshape(GRID, GRID)


@functools.cache
def thing_codes(thing: Thing) -> np.ndarray:
    """(3, 2) codes of the patches that ``thing`` covers in its slot, -1 where it covers none."""
    from .drawing import footprint

    first = FIRST_THING
    for other in (thing for things in CONTENTS.values() for thing in things):
        covered = footprint(other.kind, other.size)
        if other == thing:
            numbers = first + np.cumsum(covered).reshape(covered.shape) - 1
            return np.where(covered, numbers, -1)
        first += int(covered.sum())
    raise ValueError(f"{thing} is not in the picture book.")


@functools.cache
def code_count() -> int:
    """Number of codes."""
    things = [thing for things in CONTENTS.values() for thing in things]
    return 1 + max(int(thing_codes(thing).max()) for thing in things)

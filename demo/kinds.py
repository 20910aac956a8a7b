"""The kinds of task of the toy world: edits that need a little reasoning, and drawing from words.

Each kind is one class, with all that is special to it: how a task of the kind is made, what its
sentence does to a scene, and which of its sentences are true of two scenes. A new kind is a new
class and a line in ``KINDS`` (and, where it brings words, a checkpoint trained on them).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import ClassVar

from .scenes import (
    BACKGROUNDS,
    COLOURS,
    CORNERS,
    PLURALS,
    SHAPES,
    Cell,
    Object,
    Scene,
    a,
    colour_words,
    corner,
    description,
    empty_target,
    object_at,
    pick,
    place,
    reasoned,
)
from .tasks import Kind, Task

STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
MOST_DESCRIBED = 3
"""Objects of a scene of which all descriptions are listed."""

_PLACE = r"row (\d) column (\d)"
_ITEM = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_A = rf"an? {_ITEM}"
_ITEM_AT = rf"the {_ITEM} at {_PLACE}"


class Recolour(Kind):
    name = "recolour"
    form = rf"{_ITEM_AT} becomes ({'|'.join(COLOURS)})"
    words = "make paint becomes"

    def make(self, rng: random.Random, scene: Scene) -> Task:
        cell, item, name = pick(rng, scene)
        new = rng.choice([c for c in COLOURS if c != item[1]])
        words, reason = colour_words(rng, new)
        instruction = rng.choice([f"make {name} {words}", f"paint {name} {words}"])
        sentence = f"{reason}{object_at(cell, item)} becomes {new}"
        return self.task(scene, instruction, sentence, scene.with_cells({cell: (item[0], new)}))

    def apply(self, scene: Scene, *groups: str) -> Scene | None:
        *item_at, new = groups
        return _replaced(scene, item_at, (item_at[1], new))

    def sentences(self, before: Scene, after: Scene) -> Iterator[str]:
        for cell, old, new in _only_change(before, after):
            if old and new and old[0] == new[0]:
                yield from reasoned(f"{object_at(cell, old)} becomes", new[1])


class Replace(Kind):
    name = "replace"
    form = rf"{_ITEM_AT} becomes {_A}"
    words = "replace with turn into becomes"

    def make(self, rng: random.Random, scene: Scene) -> Task:
        cell, item, name = pick(rng, scene)
        new = (rng.choice([s for s in SHAPES if s != item[0]]), rng.choice(COLOURS))
        instruction = rng.choice([f"replace {name} with {a(new)}", f"turn {name} into {a(new)}"])
        sentence = f"{object_at(cell, item)} becomes {a(new)}"
        return self.task(scene, instruction, sentence, scene.with_cells({cell: new}))

    def apply(self, scene: Scene, *groups: str) -> Scene | None:
        *item_at, colour, shape = groups
        return _replaced(scene, item_at, (shape, colour))

    def sentences(self, before: Scene, after: Scene) -> Iterator[str]:
        for cell, old, new in _only_change(before, after):
            if old and new:
                yield f"{object_at(cell, old)} becomes {a(new)} ."


class Move(Kind):
    name = "move"
    form = rf"{_ITEM_AT} moves to {_PLACE}"
    words = "move one step up down left right to moves"

    def make(self, rng: random.Random, scene: Scene) -> Task:
        cell, item, name = pick(rng, scene)
        steps = {
            word: target
            for word, (dr, dc) in STEPS.items()
            if scene.holds(target := (cell[0] + dr, cell[1] + dc)) and scene.at(target) is None
        }
        if steps and rng.random() < 0.5:
            word = rng.choice(sorted(steps))
            target, where = steps[word], f"one step {word}"
        else:
            target, where = empty_target(rng, scene, without=cell)
            where = where.removeprefix("at ").removeprefix("in ")
            where = f"to {where}" if where.startswith(("row", "the")) else where
        sentence = f"{object_at(cell, item)} moves to {place(target)}"
        after = scene.with_cells({cell: None, target: item})
        return self.task(scene, f"move {name} {where}", sentence, after)

    def apply(self, scene: Scene, *groups: str) -> Scene | None:
        *item_at, row, column = groups
        colour, shape = item_at[:2]
        removed = _replaced(scene, item_at, None)
        return removed and _placed(removed, row, column, (shape, colour))

    def sentences(self, before: Scene, after: Scene) -> Iterator[str]:
        changed = _changes(before, after)
        if len(changed) == 2:
            for start, end in permutations(changed):
                item = before.at(start)
                if item and changed[start][1] is None and changed[end] == (None, item):
                    yield f"{object_at(start, item)} moves to {place(end)} ."


class Add(Kind):
    name = "add"
    form = rf"{_A} appears at {_PLACE}"
    words = "add draw appears"

    def make(self, rng: random.Random, scene: Scene) -> Task:
        target, where = empty_target(rng, scene, without=None)
        item = (rng.choice(SHAPES), rng.choice(COLOURS))
        sentence = f"{a(item)} appears at {place(target)}"
        instruction = f"{rng.choice(['add', 'draw'])} {a(item)} {where}"
        return self.task(scene, instruction, sentence, scene.with_cells({target: item}))

    def apply(self, scene: Scene, *groups: str) -> Scene | None:
        colour, shape, row, column = groups
        return _placed(scene, row, column, (shape, colour))

    def sentences(self, before: Scene, after: Scene) -> Iterator[str]:
        for cell, old, new in _only_change(before, after):
            if new and old is None:
                yield f"{a(new)} appears at {place(cell)} ."


class Remove(Kind):
    name = "remove"
    form = rf"{_ITEM_AT} goes away"
    words = "remove delete goes away"

    def make(self, rng: random.Random, scene: Scene) -> Task:
        cell, item, name = pick(rng, scene)
        sentence = f"{object_at(cell, item)} goes away"
        instruction = f"{rng.choice(['remove', 'delete'])} {name}"
        return self.task(scene, instruction, sentence, scene.with_cells({cell: None}))

    def apply(self, scene: Scene, *groups: str) -> Scene | None:
        return _replaced(scene, groups, None)

    def sentences(self, before: Scene, after: Scene) -> Iterator[str]:
        for cell, old, new in _only_change(before, after):
            if old and new is None:
                yield f"{object_at(cell, old)} goes away ."


class Count(Kind):
    """Remove all objects of one shape or colour; the sentence counts them."""

    name = "count"
    form = r"(\d) (.+) go away"
    words = "count and remove all objects go away"
    groups: ClassVar = {c: f"{c} objects" for c in COLOURS} | PLURALS

    def make(self, rng: random.Random, scene: Scene) -> Task:
        parts = [part for item in scene.objects().values() for part in item]
        group = rng.choice(sorted({p for p in parts if parts.count(p) > 1} or set(parts)))
        cells = self._members(scene, group)
        instruction = f"count and remove all {self.groups[group]}"
        sentence = f"{len(cells)} {self.groups[group]} go away"
        return self.task(scene, instruction, sentence, scene.with_cells(dict.fromkeys(cells)))

    def apply(self, scene: Scene, *groups: str) -> Scene | None:
        number, plural = groups
        group = next((g for g, words in self.groups.items() if words == plural), None)
        cells = self._members(scene, group)
        return scene.with_cells(dict.fromkeys(cells)) if len(cells) == int(number) else None

    def sentences(self, before: Scene, after: Scene) -> Iterator[str]:
        changed = _changes(before, after)
        if changed and all(new is None for _, new in changed.values()):
            for group, plural in self.groups.items():
                if set(changed) == set(self._members(before, group)):
                    yield f"{len(changed)} {plural} go away ."

    @staticmethod
    def _members(scene: Scene, group: str | None) -> list[Cell]:
        return [cell for cell, item in scene.objects().items() if group in item]


class Background(Kind):
    name = "background"
    form = rf"the background becomes ({'|'.join(BACKGROUNDS)})"
    words = "make paint the background becomes"

    def make(self, rng: random.Random, scene: Scene) -> Task:
        new = rng.choice([b for b in BACKGROUNDS if b != scene.background])
        words, reason = colour_words(rng, new)
        instruction = rng.choice([f"make the background {words}", f"paint the background {words}"])
        sentence = f"{reason}the background becomes {new}"
        return self.task(scene, instruction, sentence, replace(scene, background=new))

    def apply(self, scene: Scene, *groups: str) -> Scene | None:
        return replace(scene, background=groups[0])

    def sentences(self, before: Scene, after: Scene) -> Iterator[str]:
        if before.background != after.background and before.cells == after.cells:
            yield from reasoned("the background becomes", after.background)


class Generate(Kind):
    """A picture from words alone: one or two objects on a background."""

    name = "generate"
    form = rf"(.+) on ({'|'.join(BACKGROUNDS)})"
    words = "draw and on"
    edits = False

    def make(self, rng: random.Random, scene: Scene) -> Task:
        empty = Scene.empty(rng.choice(BACKGROUNDS), scene.grid)
        objects = {
            cell: (rng.choice(SHAPES), rng.choice(COLOURS))
            for cell in sorted(rng.sample(empty.all_cells(), rng.randint(1, 2)))
        }
        corners = {corner(name, scene.grid): f"in the {name} corner" for name in CORNERS}
        words = [
            f"{a(item)} {corners.get(cell) or 'at ' + place(cell)}"
            for cell, item in objects.items()
        ]
        instruction = f"draw {' and '.join(words)} on {empty.background}"
        after = empty.with_cells(objects)
        return self.task(scene, instruction, description(after, objects), after)

    def apply(self, scene: Scene, *groups: str) -> Scene | None:
        described, background = groups
        drawn = Scene.empty(background, scene.grid)
        for part in described.split(" and "):
            match = re.fullmatch(rf"{_A} at {_PLACE}", part)
            if match is None or not drawn.holds(cell := _cell(match[3], match[4])):
                return None
            drawn = drawn.with_cells({cell: (match[2], match[1])})
        return drawn

    def sentences(self, before: Scene, after: Scene) -> Iterator[str]:
        objects = after.objects()
        if 1 <= len(objects) <= MOST_DESCRIBED:
            for order in permutations(objects.items()):
                yield f"{description(after, dict(order))} ."


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (Recolour(), Replace(), Move(), Add(), Remove(), Count(), Background(), Generate())
}
"""In the order that seeds choose from."""
EDITS = tuple(name for name, kind in KINDS.items() if kind.edits)


def _cell(row: str, column: str) -> Cell:
    return int(row) - 1, int(column) - 1


def _replaced(scene: Scene, item_at: Sequence[str], new: Object | None) -> Scene | None:
    """``scene`` with ``new`` instead of the object named by colour, shape, row and column."""
    colour, shape, *at = item_at
    cell = _cell(*at)
    if not scene.holds(cell) or scene.at(cell) != (shape, colour):
        return None
    return scene.with_cells({cell: new})


def _placed(scene: Scene, row: str, column: str, item: Object) -> Scene | None:
    """``scene`` with ``item`` in a cell that is empty."""
    cell = _cell(row, column)
    if not scene.holds(cell) or scene.at(cell) is not None:
        return None
    return scene.with_cells({cell: item})


def _changes(before: Scene, after: Scene) -> dict[Cell, tuple[Object | None, Object | None]]:
    """The cells that differ, old and new; none where the backgrounds differ, too."""
    return before.changes(after) if before.background == after.background else {}


def _only_change(
    before: Scene, after: Scene
) -> Iterator[tuple[Cell, Object | None, Object | None]]:
    """The one cell that differs, old and new; nothing where it is not exactly one."""
    changed = _changes(before, after)
    if len(changed) == 1:
        yield from ((cell, old, new) for cell, (old, new) in changed.items())

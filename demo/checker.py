"""Reads the answer back from pixels and words: exact, with no model involved."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import world
from .render import PATCH, patches
from .world import Cell, Object, Scene, Task

_PLACE = r"row (\d) column (\d)"
_ITEM = rf"({'|'.join(world.COLOURS)}) ({'|'.join(world.SHAPES)})"
_A = rf"an? {_ITEM}"
_COLOUR = "|".join({*world.COLOURS, *world.BACKGROUNDS})
_REASON = re.compile(rf"(.+) (?:is|are) ({_COLOUR}) , so (.+)")


@dataclass(frozen=True)
class Verdict:
    """``picture``: every cell as the task wants it. ``sentence``: its words, applied to the input,
    give a wanted scene. ``agree``: its words, applied to the input, give the picture.
    ``kept``: share of cells the task leaves alone that are as before (1 for generation). Where a
    task has several right results, the picture is compared with the one most like it.
    """

    picture: bool
    sentence: bool
    agree: bool
    kept: float


def parse_codes(image: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """(h, w) int codes: the nearest patch of each cell, in mean squared error."""
    size = (grid[1] * PATCH, grid[0] * PATCH)
    pixels = np.asarray(image.convert("RGB").resize(size), dtype=np.float32)
    cells = pixels.reshape(grid[0], PATCH, grid[1], PATCH, 3).transpose(0, 2, 1, 3, 4)
    known = patches().reshape(len(patches()), -1).astype(np.float32)
    flat = cells.reshape(grid[0] * grid[1], -1)
    distance = (known**2).sum(1) - 2 * flat @ known.T
    return distance.argmin(1).reshape(grid)


def apply_sentence(sentence: str, before: Scene | None, grid: tuple[int, int]) -> Scene | None:
    """The scene that ``sentence`` describes, given the input; ``None`` if it makes no sense."""
    words = sentence.strip().removesuffix(".").strip()
    if before is None:
        return _described(words, grid)
    reason = _REASON.fullmatch(words)
    if reason:
        thing, colour, words = reason.groups()
        if thing not in world.THINGS[colour] or not words.endswith(f" {colour}"):
            return None
    for pattern, act in _FORMS:
        match = re.fullmatch(pattern, words)
        if match:
            return act(before, *match.groups())
    return None


def _described(words: str, grid: tuple[int, int]) -> Scene | None:
    match = re.fullmatch(rf"(.+) on ({'|'.join(world.BACKGROUNDS)})", words)
    if not match:
        return None
    scene = Scene(match[2], tuple((None,) * grid[1] for _ in range(grid[0])))
    for part in match[1].split(" and "):
        item = re.fullmatch(rf"{_A} at {_PLACE}", part)
        cell = item and _cell(item[3], item[4], scene)
        if not item or cell is None:
            return None
        scene = scene.with_cells({cell: (item[2], item[1])})
    return scene


def _cell(row: str, column: str, scene: Scene) -> Cell | None:
    cell = (int(row) - 1, int(column) - 1)
    return cell if 0 <= cell[0] < scene.grid[0] and 0 <= cell[1] < scene.grid[1] else None


def _change(
    scene: Scene, colour: str, shape: str, row: str, column: str, to: Object | None
) -> Scene | None:
    cell = _cell(row, column, scene)
    if cell is None or scene.at(cell) != (shape, colour):
        return None
    return scene.with_cells({cell: to})


def _move(scene: Scene, colour: str, shape: str, row: str, column: str, *to: str) -> Scene | None:
    removed = _change(scene, colour, shape, row, column, None)
    target = _cell(*to, scene)
    if removed is None or target is None or removed.at(target) is not None:
        return None
    return removed.with_cells({target: (shape, colour)})


def _add(scene: Scene, colour: str, shape: str, row: str, column: str) -> Scene | None:
    cell = _cell(row, column, scene)
    if cell is None or scene.at(cell) is not None:
        return None
    return scene.with_cells({cell: (shape, colour)})


def _remove_all(scene: Scene, number: str, group: str) -> Scene | None:
    singular = {f"{c} objects": c for c in world.COLOURS} | {v: k for k, v in world.PLURALS.items()}
    cells = [cell for cell, item in scene.objects().items() if singular.get(group) in item]
    return scene.with_cells(dict.fromkeys(cells)) if len(cells) == int(number) else None


def _background(scene: Scene, colour: str) -> Scene:
    return Scene(colour, scene.cells)


_FORMS = (
    (
        rf"the {_ITEM} at {_PLACE} becomes ({'|'.join(world.COLOURS)})",
        lambda s, c, h, y, x, new: _change(s, c, h, y, x, (h, new)),
    ),
    (
        rf"the {_ITEM} at {_PLACE} becomes {_A}",
        lambda s, c, h, y, x, new, shape: _change(s, c, h, y, x, (shape, new)),
    ),
    (rf"the {_ITEM} at {_PLACE} moves to {_PLACE}", _move),
    (rf"{_A} appears at {_PLACE}", _add),
    (
        rf"the {_ITEM} at {_PLACE} goes away",
        lambda s, c, h, y, x: _change(s, c, h, y, x, None),
    ),
    (r"(\d) (.+) go away", _remove_all),
    (rf"the background becomes ({'|'.join(world.BACKGROUNDS)})", _background),
)


def check(task: Task, image: Image.Image, sentence: str) -> Verdict:
    """Judge one answer to ``task``: its picture (any size) and its sentence."""
    found = parse_codes(image, task.after.grid)
    results = (task.after, *task.others)
    wanted = max((np.asarray(r.codes()) for r in results), key=lambda c: (found == c).sum())
    said = apply_sentence(sentence, task.before, task.after.grid)
    return Verdict(
        picture=bool((found == wanted).all()),
        sentence=said in results,
        agree=said is not None and bool((found == np.asarray(said.codes())).all()),
        kept=_kept(task, found, wanted),
    )


def _kept(task: Task, found: np.ndarray, wanted: np.ndarray) -> float:
    """Share of untouched cells that are right; only contents count when the background changes."""
    if task.before is None:
        return 1.0
    before = np.asarray(task.before.codes())
    if task.before.background != task.after.background:
        contents = len(world.CONTENTS)
        return float((found % contents == before % contents).mean())
    same = before == wanted
    return float((found == before)[same].mean())

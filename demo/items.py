"""Worlds as datasets, beside those that users keep in folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from ..mmp_core.errors import InputError
from ..training.data.dataset import EditDataset
from ..training.data.items import Item, Picture
from . import world
from .render import PATCH
from .worlds import AnyScene, AnyTask

MOST_TASKS = 100_000
"""Made in some five seconds."""


def world_dataset(
    count: int,
    first: int = 0,
    task: Callable[[int], AnyTask[Any]] = world.task,
    place: str = "toy world",
    callback: Callable[[int, int], None] | None = None,
) -> EditDataset:
    """``count`` tasks from the one numbered ``first`` on, with reasoning and target.

    ``task``: makes one of its number, of the toy world one on a 4×4 scene. ``facts`` of an item is
    its task, which its judge needs. ``callback(done, total)`` counts items made. Raises
    ``InputError`` for more than :data:`MOST_TASKS`.
    """
    if count > MOST_TASKS:
        raise InputError(
            f"{count:,} items of {place} were asked for: ask for at most {MOST_TASKS:,}."
        )
    items = []
    for number in range(first, first + count):
        if callback:
            callback(number - first, count)
        items.append(_item(number, task(number)))
    return EditDataset(place, tuple(items))


def _item(number: int, task: AnyTask[Any]) -> Item:
    return Item(
        f"task {number} ({task.kind})",
        task.instruction,
        task.sentence,
        None if task.before is None else _picture(task.before),
        _picture(task.after),
        task,
    )


def _picture(scene: AnyScene) -> Picture:
    codes = scene.codes()
    digest = hashlib.sha256(repr(scene).encode()).hexdigest()
    return Picture(digest, (len(codes[0]) * PATCH, len(codes) * PATCH), scene.picture)

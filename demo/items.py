"""The toy world as a dataset, beside those that users keep in folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

from ..training.data.dataset import EditDataset
from ..training.data.items import Item, Picture
from . import world
from .render import PATCH, render
from .scenes import Scene
from .tasks import Task


def world_dataset(
    count: int,
    first: int = 0,
    task: Callable[[int], Task] = world.task,
    place: str = "toy world",
) -> EditDataset:
    """``count`` tasks on 4×4 scenes, from the one numbered ``first`` on, with reasoning and target.

    ``task``: makes one of its number. ``facts`` of an item is its task, which the exact checker
    needs.
    """
    tasks = ((number, task(number)) for number in range(first, first + count))
    return EditDataset(place, tuple(_item(number, each) for number, each in tasks))


def _item(number: int, task: Task) -> Item:
    return Item(
        f"task {number} ({task.kind})",
        task.instruction,
        task.sentence,
        None if task.before is None else _picture(task.before),
        _picture(task.after),
        task,
    )


def _picture(scene: Scene) -> Picture:
    height, width = scene.grid
    digest = hashlib.sha256(repr(scene).encode()).hexdigest()
    return Picture(digest, (width * PATCH, height * PATCH), partial(render, scene))

"""The toy world as a dataset, beside those that users keep in folders."""

from __future__ import annotations

import hashlib
from functools import partial

from ..training.data.dataset import EditDataset
from ..training.data.items import Item, Picture
from . import world
from .render import PATCH, render
from .scenes import Scene
from .tasks import Task


def world_dataset(count: int, first: int = 0) -> EditDataset:
    """``count`` tasks on 4×4 scenes, from the one numbered ``first`` on, with reasoning and target.

    ``facts`` of an item is its task, which the exact checker needs.
    """
    tasks = ((number, world.task(number)) for number in range(first, first + count))
    return EditDataset("toy world", tuple(_item(number, task) for number, task in tasks))


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

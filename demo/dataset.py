"""Tasks of a world as cases to train on, in the codes of its own image tokenizer."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..mmp_core.checkpoint.load import Model
from ..mmp_core.state import TokenState
from ..mmp_core.variants.base import Layout
from ..training.cases import Case, EndlessCases
from . import world
from .tasks import Task
from .worlds import AnyTask

HELD_OUT = 10**9
"""Seeds from here on are never trained on."""
CHANGED_WEIGHT = 4.0
"""Loss weight of image tokens that the edit changes. The paper's is 1; most tokens are copies."""


class WorldCases(EndlessCases):
    """Case ``i`` is task ``i``: reproducible on every machine.

    ``same_grid``: so many in a row share a grid and can be trained on together.
    """

    def __init__(self, layout: Layout, same_grid: int = 128):
        self.layout, self.same_grid = layout, same_grid
        self.fingerprint = f"toy world, {same_grid} tasks of a grid"

    def __getitem__(self, number: int) -> Case:
        return to_case(number, self.task(number, self.same_grid), self.layout, CHANGED_WEIGHT)

    @staticmethod
    def task(number: int, same_grid: int = 128) -> world.Task:
        chooser = random.Random(f"grid {number // same_grid}")
        grid = world.GRIDS[0] if chooser.random() < 0.5 else chooser.choice(world.GRIDS[1:])
        return world.task(number, grid=grid)


def cases_of(model: Model, tasks: Iterable[AnyTask[Any]]) -> list[Case]:
    """``tasks`` with their targets. ``facts`` is the task itself."""
    return [to_case(number, task, model.layout) for number, task in enumerate(tasks)]


def to_case(number: int, task: AnyTask[Any], layout: Layout, changed_weight: float = 1.0) -> Case:
    """``changed_weight``: loss weight of image tokens that the edit changes."""
    after = torch.tensor([task.after.codes()])
    before = None if task.before is None else torch.tensor([task.before.codes()])
    target = TokenState(text_ids(layout, task.sentence, task.text_length), after)
    weight = None
    if changed_weight != 1:
        changed = torch.zeros_like(after, dtype=torch.bool) if before is None else after != before
        weight = torch.where(changed, changed_weight, 1.0)
    blank = TokenState.masked(1, target.text.shape[1], target.grid)
    return Case(
        f"task {number} ({task.kind})",
        layout.encode(task.instruction, before, blank),
        task.instruction,
        None if task.before is None else task.before.picture,
        target,
        task,
        weight,
    )


def text_ids(layout: Layout, sentence: str, length: int = Task.text_length) -> Tensor:
    """(1, length) int64: the sentence, then end-of-text ids."""
    ids = layout.tokenizer(sentence)["input_ids"]
    if len(ids) > length:
        raise ValueError(f"Sentence of {len(ids)} tokens exceeds {length}: {sentence!r}")
    padding = [layout.tokenizer.eos_token_id] * (length - len(ids))
    return torch.tensor([ids + padding])

"""Tasks of the toy world as cases to train on."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ..mmp_core.checkpoint.load import Model
from ..training.cases import Case
from . import world
from .dataset import to_example
from .render import render
from .world import Task


def world_cases(model: Model, count: int, first: int = 0) -> list[Case]:
    """``count`` cases on 4×4 scenes, from the task numbered ``first`` on."""
    return cases_of(model, (world.task(first + i) for i in range(count)))


def cases_of(model: Model, tasks: Iterable[Task]) -> list[Case]:
    """``tasks`` with their targets, in the codes of the toy world's own image tokenizer.

    ``facts`` is the task itself.
    """
    cases = []
    for number, task in enumerate(tasks):
        example = to_example(task, model.layout)
        source = None if task.before is None else partial(render, task.before)
        prompt = example.prompt.starting_from(
            type(example.target).masked(1, example.target.text.shape[1], example.target.grid)
        )
        name = f"task {number} ({task.kind})"
        cases.append(Case(name, prompt, task.instruction, source, example.target, task))
    return cases

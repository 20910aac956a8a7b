"""Training examples of the toy world, by index: reproducible on every machine, without end."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from ..mmp_core.state import TokenState
from ..mmp_core.variants.base import Layout
from ..training.sft.loss import Example
from . import world
from .tokenizer import TEXT_LENGTH

HELD_OUT = 10**9
"""Seeds from here on are never trained on."""
CHANGED_WEIGHT = 4.0
"""Loss weight of image tokens that the edit changes. The paper's is 1; most tokens are copies."""


class WorldDataset:
    """``dataset[i]``: example ``i``. ``same_grid``: so many in a row share a grid and can be
    trained on together."""

    def __init__(self, layout: Layout, same_grid: int = 128):
        self.layout, self.same_grid = layout, same_grid

    def __getitem__(self, index: int) -> Example:
        return to_example(self.task(index, self.same_grid), self.layout)

    @staticmethod
    def task(index: int, same_grid: int = 128) -> world.Task:
        chooser = random.Random(f"grid {index // same_grid}")
        grid = world.GRIDS[0] if chooser.random() < 0.5 else chooser.choice(world.GRIDS[1:])
        return world.task(index, grid=grid)


def text_ids(layout: Layout, sentence: str, length: int = TEXT_LENGTH) -> Tensor:
    """(1, length) int64: the sentence, then end-of-text ids."""
    ids = layout.tokenizer(sentence)["input_ids"]
    if len(ids) > length:
        raise ValueError(f"Sentence of {len(ids)} tokens exceeds {length}: {sentence!r}")
    padding = [layout.tokenizer.eos_token_id] * (length - len(ids))
    return torch.tensor([ids + padding])


def to_example(task: world.Task, layout: Layout) -> Example:
    after = torch.tensor([task.after.codes()])
    before = None if task.before is None else torch.tensor([task.before.codes()])
    target = TokenState(text_ids(layout, task.sentence), after)
    weight = torch.ones(after.shape)
    if before is not None:
        weight = torch.where(after != before, CHANGED_WEIGHT, weight)
    return Example(layout.encode(task.instruction, before, target), target, weight)

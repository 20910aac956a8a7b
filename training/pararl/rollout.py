"""Rollouts of ParaRL: groups of answers to one prompt, with the steps that are scored.

Groups whose prompts have equal shapes are denoised together. Of each group's trajectory s steps are
drawn uniformly, the same for all its rollouts. Every step of the plan unmasks tokens of every
rollout, so each drawn one has something to learn from.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.sampler.loop import denoise
from ...mmp_core.sampler.positions import masked_counts
from ...mmp_core.sampler.settings import SamplerSettings
from ...mmp_core.state import Prompt, Step, TokenState
from ..cases import Case

DenoisingCallback = Callable[[int, int], Any]
"""Denoising steps done and to do. May raise to interrupt."""


@dataclass(frozen=True)
class Group:
    """One prompt to be answered ``len(seeds)`` times.

    ``number``: its place among all groups of the training step, whichever process rolls it out.
    ``seeds``: one per rollout. ``choice``: seeds the drawing of the scored steps.
    """

    number: int
    case: Case
    seeds: tuple[int, ...]
    choice: str

    @classmethod
    def of(cls, number: int, case: Case, size: int, seed: str) -> Group:
        """``seed`` names run and step: with ``number`` it decides everything random."""
        rng = random.Random(f"{seed} {number}")
        seeds = tuple(rng.getrandbits(63) for _ in range(size))
        return cls(number, case, seeds, f"{seed} {number} steps")

    def drawn_steps(self, count: int, total: int) -> list[int]:
        """``count`` of ``total`` steps (or all, where there are fewer), ascending."""
        return sorted(random.Random(self.choice).sample(range(total), min(count, total)))


@dataclass(frozen=True)
class ScoredSteps:
    """M steps of rollouts, whatever rollout each belongs to.

    ``state``, ``after``: the tokens before and after the step. ``text_revealed`` (M, T),
    ``image_revealed`` (M, H, W): bool. ``index``: (M,) int64, the step's number. ``finite``: (M,)
    bool, whether the model's confidence was a number throughout.
    """

    prompt: Prompt
    state: TokenState
    after: TokenState
    text_revealed: Tensor
    image_revealed: Tensor
    index: Tensor
    finite: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | Tensor) -> ScoredSteps:
        return ScoredSteps(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def join(cls, parts: Sequence[ScoredSteps]) -> ScoredSteps:
        return cls(
            Prompt.stack([part.prompt for part in parts]),
            _join([part.state for part in parts]),
            _join([part.after for part in parts]),
            torch.cat([part.text_revealed for part in parts]),
            torch.cat([part.image_revealed for part in parts]),
            torch.cat([part.index for part in parts]),
            torch.cat([part.finite for part in parts]),
        )


@dataclass(frozen=True)
class Rollouts:
    """Groups of equal shape, rolled out.

    ``steps``: in the order group, drawn step, rollout: M = groups · drawn · size. ``final``: the
    answers, in the order group, rollout. ``total_steps``: of the denoising run.
    """

    groups: tuple[Group, ...]
    size: int
    steps: ScoredSteps
    final: TokenState
    total_steps: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, drawn steps, size)."""
        return len(self.groups), len(self.steps) // (len(self.groups) * self.size), self.size

    def cases(self, per_group: int) -> list[Case]:
        """Each group's case so many times."""
        return [group.case for group in self.groups for _ in range(per_group)]


def _join(states: Sequence[TokenState]) -> TokenState:
    return TokenState(torch.cat([s.text for s in states]), torch.cat([s.image for s in states]))


def group_by_shape(groups: Sequence[Group]) -> list[list[Group]]:
    """Lists of groups that can be denoised together: equal shapes and as much to unmask."""
    lists = defaultdict(list)
    for group in groups:
        prompt = group.case.prompt
        key = (
            prompt.instruction.shape,
            prompt.unconditional.shape,
            None if prompt.image is None else prompt.image.shape,
            prompt.initial.text.shape,
            prompt.initial.grid,
            masked_counts(prompt.initial.text),
            masked_counts(prompt.initial.image),
        )
        lists[key].append(group)
    return list(lists.values())


@torch.no_grad()
def roll_out(
    model: Model,
    groups: Sequence[Group],
    settings: SamplerSettings,
    *,
    drawn: int,
    micro_batch: int,
    progress: DenoisingCallback | None = None,
) -> Rollouts:
    """Denoise ``groups``, one list of :func:`group_by_shape`.

    ``drawn``: steps recorded per group. ``micro_batch``: rollouts at a time.
    """
    size = len(groups[0].seeds)
    seeds = [seed for group in groups for seed in group.seeds]
    prompt = Prompt.stack([group.case.prompt for group in groups]).repeat(size).to(model.device)
    recorder, finals, total_steps = _StepRecorder(groups, drawn, progress), [], 0
    for start in range(0, len(seeds), micro_batch):
        rows = range(start, min(start + micro_batch, len(seeds)))
        recorder.begin(prompt[start : rows.stop], rows)
        seeded = replace(settings, seed=seeds[start : rows.stop])
        trajectory = denoise(model, recorder.prompt, seeded, callback=recorder, record=0)
        finals.append(trajectory.final)
        total_steps = trajectory.total_steps
    return Rollouts(tuple(groups), size, recorder.in_order(), _join(finals), total_steps)


class _StepRecorder:
    """The callback of denoising runs: records of each rollout its group's drawn steps."""

    def __init__(self, groups: Sequence[Group], drawn: int, progress: DenoisingCallback | None):
        self.groups, self.drawn, self.progress = groups, drawn, progress
        self.size = len(groups[0].seeds)
        self._parts: list[ScoredSteps] = []
        self._places: list[tuple[int, int, int]] = []

    def begin(self, prompt: Prompt, rows: range) -> None:
        """The run that follows denoises ``prompt``, number ``rows`` of all rollouts."""
        self.prompt, self.rows = prompt, rows

    def __call__(self, index: int, total: int, step: Step) -> None:
        recorded = []
        for place, row in enumerate(self.rows):
            group, rollout = divmod(row, self.size)
            drawn = self.groups[group].drawn_steps(self.drawn, total)
            if index in drawn:
                recorded.append(place)
                self._places.append((group, drawn.index(index), rollout))
        if recorded:
            self._parts.append(_scored_steps(self.prompt, step, recorded))
        if self.progress:
            everyone = len(self.groups) * self.size
            self.progress(self.rows.start * total + (index + 1) * len(self.rows), everyone * total)

    def in_order(self) -> ScoredSteps:
        """What was recorded, by group, drawn step and rollout."""
        steps = ScoredSteps.join(self._parts)
        order = sorted(range(len(self._places)), key=self._places.__getitem__)
        return steps[torch.tensor(order, device=steps.index.device)]


def _scored_steps(prompt: Prompt, step: Step, rows: list[int]) -> ScoredSteps:
    at = torch.tensor(rows, device=step.text_revealed.device)
    confidence = torch.cat((step.text_confidence, step.image_confidence.flatten(1)), dim=1)
    return ScoredSteps(
        prompt[at],
        step.state[at],
        step.after[at],
        step.text_revealed[at],
        step.image_revealed[at],
        torch.full_like(at, step.index),
        confidence[at].isfinite().all(dim=1),
    )

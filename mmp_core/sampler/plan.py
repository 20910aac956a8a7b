"""Plan: the steps of a run, their counts on the device, and the positions each step predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..state import MASKED, Step
from .positions import MaskedPositions, masked_counts
from .schedule import Counts, PlannedStep

_AFTER = ("text_masked_after", "image_masked_after")
_COUNTS = ("text_quota", "text_predicted", "image_predicted", *_AFTER)
_LEFT_ALONE = 2**62
"""Stands for the tokens still masked after a step that leaves a modality alone."""


@dataclass(frozen=True)
class Targets:
    """What one step has to unmask of one modality. ``positions``: those to predict. ``count``: (B,)
    int64 on the device; of text how many to unmask, of the image how many stay masked. ``noise``:
    scale of the noise on confidences. ``until``: text from this position on is left alone."""

    positions: MaskedPositions
    count: Tensor
    noise: float = 0.0
    until: int | None = None


@dataclass(frozen=True)
class StepTargets:
    """What one step has to unmask; ``None`` for a modality that it leaves alone. ``last``: the step
    before. ``planned``: masked text and image tokens before the step, per sample, as far as the
    plan knows them."""

    text: Targets | None
    image: Targets | None
    last: Step
    planned: tuple[Counts | None, Counts | None]

    @cached_property
    def masked(self) -> list[tuple[int, int]]:
        """Masked text and image tokens of each sample before the step; read back from the device
        where the plan does not know them."""
        tokens = self.last.after.text, self.last.after.image
        text, image = (
            masked_counts(ids) if counts is None else counts
            for ids, counts in zip(tokens, self.planned, strict=True)
        )
        return list(zip(text, image, strict=True))


@dataclass(frozen=True)
class Plan:
    """All steps of a run, in order. ``counts``: what they count, by name: (S, B) int64 on the
    model's device."""

    steps: tuple[PlannedStep, ...]
    counts: Mapping[str, Tensor]

    @classmethod
    def of(cls, steps: Sequence[PlannedStep], batch: int, device: torch.device) -> Plan:
        """``steps`` for ``batch`` samples, with their counts on ``device``."""
        counts = {}
        for name in _COUNTS:
            values = [getattr(step, name) or (_LEFT_ALONE,) * batch for step in steps]
            table = torch.tensor(values, dtype=torch.int64).view(-1, batch)
            counts[name] = table.to(device)
        return cls(tuple(steps), counts)

    def __len__(self) -> int:
        return len(self.steps)

    def for_samples(self, samples: slice) -> Plan:
        """The same steps for some samples of the batch."""
        steps = (
            replace(step, **{n: v[samples] for n, v in vars(step).items() if isinstance(v, tuple)})
            for step in self.steps
        )
        counts = {name: table[:, samples] for name, table in self.counts.items()}
        return replace(self, steps=tuple(steps), counts=counts)

    def targets(self, index: int, last: Step) -> StepTargets:
        """What the step at ``index`` has to unmask after ``last``."""
        step, text, image = self.steps[index], None, None
        if step.text_quota is not None:
            text = self._predicted(index, "text", last.after.text, "text_quota")
        if step.image_masked_after is not None:
            codes = last.after.image.flatten(1)
            image = self._predicted(index, "image", codes, "image_masked_after")
        return StepTargets(text, image, last, (step.text_masked_before, step.image_masked_before))

    def _predicted(self, index: int, modality: str, tokens: Tensor, count: str) -> Targets | None:
        """``None`` where it is known that there is nothing to predict."""
        name, step = f"{modality}_predicted", self.steps[index]
        counts, until = getattr(step, name), step.text_until if modality == "text" else None
        if not tokens.shape[1] or (counts is not None and not any(counts)):
            return None
        positions = MaskedPositions.of(tokens, counts, self.counts[name][index], until)
        return Targets(positions, self.counts[count][index], step.image_noise, until)


class AdaptivePlan(Plan):
    """A plan for a selection that may run ahead of it, or end a text before its length: only
    samples and modalities that are behind are predicted. Which they are is read back from the
    device once a step."""

    def targets(self, index: int, last: Step) -> StepTargets:
        step, text, image = self.steps[index], None, None
        if step.text_quota is not None and step.text_masked_before is None:
            return super().targets(index, last)  # whether the run is ahead is not known
        tokens = last.after.text, last.after.image.flatten(1)
        masked = torch.stack([(ids == MASKED).sum(dim=1) for ids in tokens])
        after = torch.stack([self.counts[name][index] for name in _AFTER])
        in_reach = masked.clone()
        in_reach[0] = (tokens[0][:, : step.text_until] == MASKED).sum(dim=1)
        behind = torch.where(masked > after, in_reach, 0)
        counts, (text_behind, image_behind) = torch.stack((masked, behind)).tolist()
        if any(text_behind):
            positions = MaskedPositions.of(tokens[0], text_behind, behind[0], step.text_until)
            count = (masked[0] - after[0]).clamp_min(0)
            text = Targets(positions, count, until=step.text_until)
        if any(image_behind):
            positions = MaskedPositions.of(tokens[1], image_behind, behind[1])
            image = Targets(positions, after[1], step.image_noise)
        return StepTargets(text, image, last, (tuple(counts[0]), tuple(counts[1])))

"""Plan: the steps of a run, their counts on the device, and the positions each step predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..state import MASKED, TokenState
from .positions import MaskedPositions
from .schedule import Counts, PlannedStep

_COUNTS = (
    "text_quota",
    "text_predicted",
    "text_masked_after",
    "image_predicted",
    "image_masked_after",
)


@dataclass(frozen=True)
class Targets:
    """What one step has to unmask of one modality.

    ``positions``: those to predict. ``count``: (B,) int64 on the device; of text how many to
    unmask, of the image how many stay masked.
    """

    positions: MaskedPositions
    count: Tensor


@dataclass(frozen=True)
class StepTargets:
    """What one step has to unmask; ``None`` for a modality that it leaves alone.

    ``text_masked``, ``image_masked``: tokens masked before the step, per sample; ``None`` where the
    plan does not know.
    """

    text: Targets | None
    image: Targets | None
    text_masked: Counts | None
    image_masked: Counts | None


@dataclass(frozen=True)
class Plan:
    """All steps of a run, in order.

    ``counts``: what each step counts, as (S, B) int64 on the model's device; 0 where it has
    ``None``.
    """

    steps: tuple[PlannedStep, ...]
    counts: Mapping[str, Tensor]

    @classmethod
    def of(cls, steps: Sequence[PlannedStep], batch: int, device: torch.device) -> Plan:
        """``steps`` for ``batch`` samples, with their counts on ``device``."""
        counts = {}
        for name in _COUNTS:
            rows = [getattr(step, name) or (0,) * batch for step in steps]
            counts[name] = torch.tensor(rows, dtype=torch.int64).view(-1, batch).to(device)
        return cls(tuple(steps), counts)

    def __len__(self) -> int:
        return len(self.steps)

    def for_samples(self, samples: slice) -> Plan:
        """The same steps for some samples of the batch."""
        steps = tuple(step.for_samples(samples) for step in self.steps)
        counts = {name: table[:, samples] for name, table in self.counts.items()}
        return replace(self, steps=steps, counts=counts)

    def targets(self, index: int, state: TokenState) -> StepTargets:
        """What the step at ``index`` has to unmask of ``state``."""
        step, codes, text, image = self.steps[index], state.image.flatten(1), None, None
        counts = {name: table[index] for name, table in self.counts.items()}
        if step.text_quota is not None:
            positions = MaskedPositions.of(
                state.text, step.text_predicted, counts["text_predicted"]
            )
            text = Targets(positions, counts["text_quota"])
        if step.image_masked_after is not None and codes.shape[1]:
            positions = MaskedPositions.of(codes, step.image_predicted, counts["image_predicted"])
            image = Targets(positions, counts["image_masked_after"])
        return StepTargets(text, image, step.text_masked_before, step.image_masked_before)


class AdaptivePlan(Plan):
    """A plan for a selection that may run ahead of it: only samples and modalities that are behind
    are predicted. Which they are is read back from the device once a step."""

    def targets(self, index: int, state: TokenState) -> StepTargets:
        step, codes, text, image = self.steps[index], state.image.flatten(1), None, None
        if step.text_quota is not None and step.text_masked_before is None:
            return super().targets(index, state)  # how far the plan is is not known
        masked = torch.stack([(tokens == MASKED).sum(dim=1) for tokens in (state.text, codes)])
        text_masked, image_masked = (tuple(counts) for counts in masked.tolist())
        text_after = self.counts["text_masked_after"][index]
        image_after = self.counts["image_masked_after"][index]
        positions = _behind(state.text, text_masked, masked[0], step.text_masked_after, text_after)
        if positions:
            text = Targets(positions, (masked[0] - text_after).clamp_min(0))
        positions = _behind(codes, image_masked, masked[1], step.image_masked_after, image_after)
        if positions:
            image = Targets(positions, image_after)
        return StepTargets(text, image, text_masked, image_masked)


def _behind(
    tokens: Tensor,
    masked: Counts,
    masked_on_device: Tensor,
    planned: Counts | None,
    planned_on_device: Tensor,
) -> MaskedPositions | None:
    """The masked positions of those samples that have more of them than planned, if any."""
    if planned is None:
        return None
    counts = tuple(n if n > keep else 0 for n, keep in zip(masked, planned, strict=True))
    if not any(counts):
        return None
    on_device = torch.where(masked_on_device > planned_on_device, masked_on_device, 0)
    return MaskedPositions.of(tokens, counts, on_device)

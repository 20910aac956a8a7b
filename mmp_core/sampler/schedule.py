"""Schedule: how many tokens are revealed at which step, decided before the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..state import MASKED, TokenState
from .positions import MaskedPositions
from .settings import SamplerSettings

Counts = tuple[int, ...]
"""One number per sample of the batch."""


@dataclass(frozen=True)
class PlannedStep:
    """What one step has to unmask. Each field but the last: one number per sample.

    ``text_quota``: text tokens to unmask; ``None`` when the step leaves text alone.
    ``text_masked_after``, ``image_masked_after``: tokens still masked after the step, if all goes
    by the plan; of the image ``None`` when the step leaves it alone.
    ``text_predicted``, ``image_predicted``: masked positions to predict, 0 for a sample of which
    nothing is unmasked; ``None`` for all there are, which costs a synchronisation to find out.
    ``text_masked_before``, ``image_masked_before``: tokens masked before the step; ``None`` where
    that is not known.
    ``image_noise``: scale of the noise on the image's confidence.
    """

    text_quota: Counts | None = None
    text_masked_after: Counts | None = None
    image_masked_after: Counts | None = None
    text_predicted: Counts | None = None
    image_predicted: Counts | None = None
    text_masked_before: Counts | None = None
    image_masked_before: Counts | None = None
    image_noise: float = 0.0


@dataclass(frozen=True)
class Targets:
    """What one step has to decide of one modality.

    ``positions``: those to predict. ``count`` (B,) int64, on the device: of text how many to
    reveal, of the image how many stay masked.
    """

    positions: MaskedPositions
    count: Tensor


@dataclass(frozen=True)
class StepTargets:
    """What one step has to decide; ``None`` for a modality that it leaves alone.

    ``text_masked_before``, ``image_masked_before``: see :class:`PlannedStep`.
    """

    text: Targets | None
    image: Targets | None
    text_masked_before: Counts | None
    image_masked_before: Counts | None


@dataclass(frozen=True)
class Plan:
    """All steps of a run, in order.

    ``counts``: each field of the steps that counts, as (S, B) int64 on the model's device; 0 where
    a step has ``None``.
    """

    steps: tuple[PlannedStep, ...]
    counts: Mapping[str, Tensor]

    @classmethod
    def of(cls, steps: Sequence[PlannedStep], batch: int, device: torch.device) -> Plan:
        counts = {}
        for name in (
            "text_quota",
            "text_masked_after",
            "image_masked_after",
            "text_predicted",
            "image_predicted",
        ):
            values = [getattr(step, name) or (0,) * batch for step in steps]
            counts[name] = torch.tensor(values, dtype=torch.int64).view(-1, batch).to(device)
        return cls(tuple(steps), counts)

    def __len__(self) -> int:
        return len(self.steps)

    def targets(self, index: int, state: TokenState) -> StepTargets:
        """What the step at ``index`` has to decide of ``state``."""
        step, text, image = self.steps[index], None, None
        counts = {name: table[index] for name, table in self.counts.items()}
        if step.text_quota is not None:
            positions = MaskedPositions.of(
                state.text, step.text_predicted, counts["text_predicted"]
            )
            text = Targets(positions, counts["text_quota"])
        if step.image_masked_after is not None:
            positions = MaskedPositions.of(
                state.image.flatten(1), step.image_predicted, counts["image_predicted"]
            )
            image = Targets(positions, counts["image_masked_after"])
        return StepTargets(text, image, step.text_masked_before, step.image_masked_before)


class AdaptivePlan(Plan):
    """For a selection that may run ahead of the plan: only samples and modalities that are behind
    it are asked about. Which they are is read back once a step."""

    def targets(self, index: int, state: TokenState) -> StepTargets:
        step, codes = self.steps[index], state.image.flatten(1)
        undecided = torch.stack([(tokens == MASKED).sum(dim=1) for tokens in (state.text, codes)])
        text_count, image_count = map(tuple, undecided.tolist())
        text_masked_after, masked = (
            self.counts["text_masked_after"][index],
            self.counts["image_masked_after"][index],
        )
        text = _behind(
            state.text, text_count, undecided[0], step.text_masked_after, text_masked_after
        )
        image = _behind(codes, image_count, undecided[1], step.image_masked_after, masked)
        return StepTargets(
            text and Targets(text, (undecided[0] - text_masked_after).clamp_min(0)),
            image and Targets(image, masked),
            text_count,
            image_count,
        )


def _behind(
    tokens: Tensor, counts: Counts, undecided: Tensor, left: Counts | None, left_on_device: Tensor
) -> MaskedPositions | None:
    """The undecided positions of those samples that have more of them than ``left``, if any."""
    if left is None:
        return None
    counts = tuple(n if n > keep else 0 for n, keep in zip(counts, left, strict=True))
    if not any(counts):
        return None
    return MaskedPositions.of(tokens, counts, torch.where(undecided > left_on_device, undecided, 0))


def corrected_steps(text: Counts, image: Counts, settings: SamplerSettings) -> list[PlannedStep]:
    """Text revealed linearly, image by the cosine of its own progress.

    ``text``, ``image``: undecided tokens at the start, per sample. Each modality keeps its own
    number of steps, none of which collapse. Steps that reveal nothing are left out.
    """
    text_at, image_at = _placed(settings)
    steps, text_masked_after, image_left = [], text, image
    for index in range(max(*text_at, *image_at) + 1):
        step, text_after, image_after = PlannedStep(), text_masked_after, image_left
        if index in text_at:
            text_after = tuple(_linear(n, text_at[index], settings.text_steps) for n in text)
        if index in image_at:
            progress = image_at[index] / settings.image_steps
            image_after = tuple(_cosine(n, progress) for n in image)
        if text_after != text_masked_after:
            quota = tuple(b - a for b, a in zip(text_masked_after, text_after, strict=True))
            rows = _changing(text_masked_after, text_after)
            step = replace(
                step, text_quota=quota, text_masked_after=text_after, text_predicted=rows
            )
        if image_after != image_left:
            noise = settings.image_temperature * (1 - progress)
            rows = _changing(image_left, image_after)
            step = replace(
                step, image_masked_after=image_after, image_predicted=rows, image_noise=noise
            )
        if step.text_quota or step.image_masked_after:
            steps.append(
                replace(step, text_masked_before=text_masked_after, image_masked_before=image_left)
            )
        text_masked_after, image_left = text_after, image_after
    return steps


def _changing(before: Counts, after: Counts) -> Counts:
    return tuple(b if a != b else 0 for b, a in zip(before, after, strict=True))


def _placed(settings: SamplerSettings) -> tuple[dict[int, int], dict[int, int]]:
    """The steps that reveal text, and those that reveal the image: {index: 1-based rank} each.

    In parallel both end together, with as many steps as the larger number; image steps start after
    a quarter of the run, as in the reference, or earlier where they would not fit.
    """
    text, image = settings.text_steps, settings.image_steps
    if settings.order == "text_first":
        return spread(text, 0, text), spread(image, text, text + image)
    if settings.order == "image_first":
        return spread(text, image, image + text), spread(image, 0, image)
    total = max(text, image)
    return spread(text, 0, total), spread(image, min(total // 4, total - image), total)


def spread(count: int, start: int, stop: int) -> dict[int, int]:
    """``count`` distinct steps from ``start`` to ``stop - 1``: {index: 1-based rank}."""
    if count < 2:
        return dict.fromkeys([stop - 1][:count], 1)
    return {start + i * (stop - 1 - start) // (count - 1): i + 1 for i in range(count)}


def _linear(total: int, rank: int, steps: int) -> int:
    """How many of ``total`` text tokens are undecided after the ``rank``-th of ``steps``."""
    return total * (steps - rank) // steps


def _cosine(total: int, progress: float) -> int:
    """How many of ``total`` image codes are masked at ``progress`` in (0, 1]."""
    return 0 if progress == 1 else math.floor(total * math.cos(math.pi / 2 * progress))

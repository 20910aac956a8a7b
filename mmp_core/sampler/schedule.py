"""Schedule: how many tokens are unmasked at which step, settled before the first one. Knows no
torch, so that settings and options can be declared from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import SamplerSettings

Counts = tuple[int, ...]
"""One number per sample of the batch."""

MaskSchedule = Callable[[int, int, int], int]
"""``schedule(total, rank, steps)``: how many of ``total`` tokens are still masked after step
``rank`` (1 … ``steps``). Never grows with ``rank``, and is 0 after the last step."""


def linear(total: int, rank: int, steps: int) -> int:
    """Unmask as many tokens at each step."""
    return total * (steps - rank) // steps


def cosine(total: int, rank: int, steps: int) -> int:
    """Unmask few tokens first and more at each step (MaskGIT, arXiv 2202.04200)."""
    return 0 if rank == steps else math.floor(total * math.cos(math.pi / 2 * (rank / steps)))


SCHEDULES: dict[str, MaskSchedule] = {"linear": linear, "cosine": cosine}
"""By the names that :class:`SamplerSettings` takes; a new schedule is one more line here."""


@dataclass(frozen=True)
class PlannedStep:
    """What one step has to unmask. Fields of type :data:`Counts`: one number per sample.

    ``text_quota``: text tokens to unmask; ``image_masked_after``: image codes still masked after
    the step; ``None`` when it leaves text or image alone. ``text_masked_before``,
    ``image_masked_before``: tokens masked before the step by the plan; ``None`` where not known,
    which costs a synchronisation per step. ``image_noise``: its scale, on the codes' confidence.
    ``text_until``: text from this position on waits for a later step; ``None`` for none.
    ``text_waiting``: how many masked tokens do.
    """

    text_quota: Counts | None = None
    image_masked_after: Counts | None = None
    text_masked_before: Counts | None = None
    image_masked_before: Counts | None = None
    image_noise: float = 0.0
    text_until: int | None = None
    text_waiting: Counts | None = None

    @property
    def text_masked_after(self) -> Counts | None:
        """Text tokens still masked after the step; ``None`` where not known or left alone."""
        if self.text_quota is None or self.text_masked_before is None:
            return None
        return _difference(self.text_masked_before, self.text_quota)

    @property
    def text_predicted(self) -> Counts | None:
        """Masked text positions to predict: all that do not wait, or 0 for a sample of which none
        is unmasked."""
        changing = _changing(self.text_masked_before, self.text_masked_after)
        if changing is None or self.text_waiting is None:
            return changing
        return tuple(n - w if n else 0 for n, w in zip(changing, self.text_waiting, strict=True))

    @property
    def image_predicted(self) -> Counts | None:
        """Masked image positions to predict: all, or 0 for a sample of which none is unmasked."""
        return _changing(self.image_masked_before, self.image_masked_after)


def corrected_steps(
    text: Counts, image: Counts, settings: SamplerSettings, blocks: Sequence[Counts] = ()
) -> list[PlannedStep]:
    """The steps of the "corrected" preset; those that would unmask nothing are left out. ``text``,
    ``image``: masked tokens at the start, per sample; both may be 0. ``blocks``: those of ``text``
    in each block of it, where one is finished before the next is begun. Each modality keeps its own
    number of steps, none of which collapse."""
    image_schedule = SCHEDULES[settings.image_schedule]
    text_ranks, image_ranks = _ranks(settings)
    steps, text_masked, image_masked = [], text, image
    for index in range(max(*text_ranks, *image_ranks) + 1):
        text_after, image_after, noise = text_masked, image_masked, 0.0
        until, waiting = None, None
        if rank := text_ranks.get(index):
            text_after, last, waiting = _text_after(blocks or [text], rank, settings)
            until = (last + 1) * settings.block_length if len(blocks) > 1 else None
        if rank := image_ranks.get(index):
            image_after = tuple(image_schedule(n, rank, settings.image_steps) for n in image)
            noise = settings.image_temperature * (1 - rank / settings.image_steps)
        unmasks_text, unmasks_image = text_after != text_masked, image_after != image_masked
        if unmasks_text or unmasks_image:
            step = PlannedStep(
                text_quota=_difference(text_masked, text_after) if unmasks_text else None,
                image_masked_after=image_after if unmasks_image else None,
                text_masked_before=text_masked,
                image_masked_before=image_masked,
                image_noise=noise,
                text_until=until,
                text_waiting=waiting,
            )
            steps.append(step)
        text_masked, image_masked = text_after, image_after
    return steps


def _text_after(
    blocks: Sequence[Counts], rank: int, settings: SamplerSettings
) -> tuple[Counts, int, Counts]:
    """Masked text tokens after step ``rank`` (from 1), the block that is unmasked at it, and masked
    tokens of later blocks. Blocks have equal numbers of steps; several share one where there are
    more blocks than steps."""
    schedule, total, steps = SCHEDULES[settings.text_schedule], len(blocks), settings.text_steps
    last = (rank * total - 1) // steps
    first_rank, last_rank = last * steps // total + 1, (last + 1) * steps // total
    first = ((first_rank - 1) * total - 1) // steps + 1
    begun = (sum(counts) for counts in zip(*blocks[first : last + 1], strict=True))
    waiting = tuple(sum(c) for c in zip(*blocks[last + 1 :], strict=True)) or (0,) * len(blocks[0])
    place = rank - first_rank + 1, last_rank - first_rank + 1
    after = tuple(schedule(n, *place) + w for n, w in zip(begun, waiting, strict=True))
    return after, last, waiting


def _difference(before: Counts, after: Counts) -> Counts:
    return tuple(b - a for b, a in zip(before, after, strict=True))


def _changing(before: Counts | None, after: Counts | None) -> Counts | None:
    """``before`` where ``after`` differs, else 0; ``None`` where either is not known."""
    if before is None or after is None:
        return None
    return tuple(b if a != b else 0 for b, a in zip(before, after, strict=True))


def _ranks(settings: SamplerSettings) -> tuple[dict[int, int], dict[int, int]]:
    """The steps that unmask text, and those that unmask the image: {index: 1-based rank} each. In
    parallel both end together, with as many steps as the larger number; image steps start after a
    quarter of the run, as in the reference, or earlier where they would not fit."""
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

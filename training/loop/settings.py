"""How a run steps, whatever it trains. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ...mmp_core.errors import InputError
from ...mmp_core.options import check, option

Schedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw", "muon", "adamw8bit"]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of every run. Rates are per step.

    Raises ``InputError`` for a value out of range.
    """

    steps: int = option(
        200, "Updates in all. To train on after a run, raise it and resume.", low=1, high=100_000
    )
    learning_rate: float = option(
        5e-5, "How far a step goes, once the warm-up is over.", above=0, high=1, step=1e-7
    )
    schedule: Schedule = option(
        "constant",
        "Hold the learning rate after its warm-up, or let it fall to 0 at the last step, in a "
        "straight line or as a cosine does.",
        choices=get_args(Schedule),
        advanced=True,
    )
    decay_steps: int = option(
        0,
        "Steps at the end over which the learning rate falls. 0: all of them.",
        low=0,
        high=100_000,
        advanced=True,
    )
    warmup_steps: int = option(
        10, "Steps over which the learning rate rises.", low=0, high=10_000, advanced=True
    )
    optimizer: Optimizer = option(
        "adamw",
        "adamw; muon: orthogonalised updates for the matrices of the blocks, for training from "
        "nothing; or adamw8bit: adamw with moments of one byte, by bitsandbytes, and plain adamw "
        "where that is not installed.",
        choices=get_args(Optimizer),
        advanced=True,
    )
    weight_decay: float = option(0.0, "Weight decay of the optimizer.", low=0, high=10)
    ema: float = option(
        0.0,
        "Decay of a running average of the weights, which then is the result. 0: off.",
        low=0,
        high=0.99999,
        advanced=True,
    )
    clip_norm: float = option(1.0, "The largest norm that a step's gradient may have.", above=0)
    micro_batch: int = option(
        8,
        "Sequences per forward; gradients are accumulated. Changes memory and speed, not the "
        "result.",
        low=1,
        high=4096,
    )
    gradient_checkpointing: bool = option(
        True,
        "Compute each block again in the backward instead of keeping it: needed for large models. "
        "Off: faster, and much more memory.",
    )
    checkpoint_every: int = option(
        50,
        "Steps between saved states. An interruption saves one, too; a crash loses what came after "
        "the last.",
        low=1,
        high=10_000,
        advanced=True,
    )
    seed: int = option(
        0,
        "Decides all that is random. The same seed gives the same result again, on the same kind "
        "of device.",
        low=0,
        high=2**64 - 1,
    )

    keep_every: int = option(
        0,
        "Steps between two adapters that are kept in the run's folder under the number of their "
        "step, to choose from. 0: none but the last and, with held-out items, the best.",
        low=0,
        high=100_000,
    )
    keep_last: int = option(
        3,
        "How many of these are kept: the newest. The best is kept besides.",
        low=1,
        high=1000,
        advanced=True,
    )
    held_out: float = option(
        0.0,
        "Share of the items that is never trained on. Their loss says whether the model learns "
        "what they have in common with the others, or only remembers the others.",
        low=0,
        high=0.9,
        step=0.05,
    )
    evaluate_every: int = option(
        25,
        "Steps between two measurements of the loss on held-out and guard items.",
        low=1,
        high=100_000,
        advanced=True,
    )
    guard_rise: float = option(
        0.1,
        "How far the loss on guard items, which stand for what the model knew, may rise, as a "
        "share of what it was at the start, for an adapter to count as the best. A rise of less "
        "than 0.005 never counts.",
        low=0,
        high=100,
        step=0.05,
        advanced=True,
    )
    patience: int = option(
        0,
        "Stop after so many measurements in a row that were not better than the best. 0: never.",
        low=0,
        high=10_000,
        advanced=True,
    )
    samples_every: int = option(
        0,
        "Steps between two sets of your own samples, which are kept in the run's folder. 0: as "
        "often as held-out items are measured.",
        low=0,
        high=100_000,
        advanced=True,
    )

    FREE: ClassVar[tuple[str, ...]] = (
        "steps",
        "learning_rate",
        "schedule",
        "decay_steps",
        "warmup_steps",
        "clip_norm",
        "micro_batch",
        "gradient_checkpointing",
        "checkpoint_every",
        "keep_every",
        "keep_last",
        "evaluate_every",
        "guard_rise",
        "patience",
        "samples_every",
    )
    """What may be changed when a run is resumed."""

    def __post_init__(self) -> None:
        check(self)
        if self.decay_steps and self.schedule == "constant":
            raise InputError(
                f"decay_steps is {self.decay_steps}: only the schedules 'linear' and 'cosine' "
                "fall; give 0."
            )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the step that follows ``step`` others."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = min(1.0, (self.steps - step) / (self.decay_steps or self.steps))
        if self.schedule == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return self.learning_rate * warm * (1.0 if self.schedule == "constant" else left)

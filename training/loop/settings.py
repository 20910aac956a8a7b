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
        200,
        "Total number of updates. To continue a finished run, raise it and turn on resume.",
        low=1,
        high=100_000,
    )
    learning_rate: float = option(
        5e-5,
        "How far each update moves the weights, once the warm-up is over.",
        above=0,
        high=1,
        step=1e-7,
    )
    schedule: Schedule = option(
        "constant",
        "How the learning rate goes on after the warm-up. constant: it stays. linear, cosine: it "
        "falls to 0 at the last step, in a straight line or along a cosine.",
        choices=get_args(Schedule),
        advanced=True,
    )
    decay_steps: int = option(
        0,
        "Number of steps at the end over which the learning rate falls. 0: all steps.",
        low=0,
        high=100_000,
        advanced=True,
    )
    warmup_steps: int = option(
        10,
        "Number of steps at the beginning over which the learning rate rises.",
        low=0,
        high=10_000,
        advanced=True,
    )
    optimizer: Optimizer = option(
        "adamw",
        "adamw: the usual choice. muon: orthogonalised updates for the matrices of the blocks, "
        "for training from scratch. adamw8bit: adamw with 8-bit moments by bitsandbytes, or "
        "plain adamw where that is not installed.",
        choices=get_args(Optimizer),
        advanced=True,
    )
    weight_decay: float = option(0.0, "Weight decay of the optimizer.", low=0, high=10)
    ema: float = option(
        0.0,
        "Decay of a running average of the weights, which becomes the result. 0: off.",
        low=0,
        high=0.99999,
        step=0.0001,
        advanced=True,
    )
    clip_norm: float = option(
        1.0, "The largest norm that the gradient of a step may have.", above=0
    )
    micro_batch: int = option(
        8,
        "Number of sequences per forward pass; gradients are accumulated. Changes memory and "
        "speed, not the result.",
        low=1,
        high=4096,
    )
    gradient_checkpointing: bool = option(
        True,
        "Saves memory by computing each block again in the backward pass instead of keeping its "
        "activations. Large models need it. Off: faster, with much more memory.",
    )
    offload: bool = option(
        False,
        "Keep the model's own weights in the computer's memory and bring each layer to the GPU "
        "when it is used, so that an adapter of the 8B trains on 12 GB; slower. ComfyUI does so "
        "by itself where it must.",
    )
    checkpoint_every: int = option(
        50,
        "Number of steps between saved states. An interruption saves one, too; a crash loses the "
        "steps after the last one.",
        low=1,
        high=10_000,
        advanced=True,
    )
    seed: int = option(
        0,
        "Seed of everything random. The same seed gives the same result on the same kind of "
        "device.",
        low=0,
        high=2**64 - 1,
    )

    keep_every: int = option(
        0,
        "Number of steps between two adapters that are kept in the run's folder, named by their "
        "step, for you to choose from. 0: only the last one and, with held-out items, the best "
        "one.",
        low=0,
        high=100_000,
    )
    keep_last: int = option(
        3,
        "How many of these adapters are kept, the newest ones. The best one is always kept.",
        low=1,
        high=1000,
        advanced=True,
    )
    held_out: float = option(
        0.0,
        "Share of the items that is set aside and never trained on. Their loss shows whether the "
        "model learns something general or only memorises.",
        low=0,
        high=0.9,
        step=0.05,
    )
    evaluate_every: int = option(
        25,
        "Number of steps between two measurements of the loss on held-out and guard items.",
        low=1,
        high=100_000,
        advanced=True,
    )
    guard_rise: float = option(
        0.1,
        "How far the loss on guard items, which stand for what the model could do before, may "
        "rise for an adapter to still count as the best, as a share of the loss at the start. A "
        "rise of less than 0.005 is ignored.",
        low=0,
        high=100,
        step=0.05,
        advanced=True,
    )
    patience: int = option(
        0,
        "Stop after this many measurements in a row without an improvement. 0: never.",
        low=0,
        high=10_000,
        advanced=True,
    )
    samples_every: int = option(
        0,
        "Number of steps between two sets of your own samples, which are kept in the run's "
        "folder. 0: whenever held-out items are measured.",
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
        "offload",
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

"""What a model in training answers now: pairs of text and picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..mmp_core.checkpoint.load import Model
from ..mmp_core.sampler.settings import SamplerSettings
from .cases import Case, Pair
from .pararl.pairs import final_pairs
from .pararl.rollout import Group, group_by_shape, roll_out

SAMPLER = SamplerSettings(text_steps=32, image_steps=16, joint_guidance=0.0)


def answers(
    model: Model,
    cases: Sequence[Case],
    *,
    seed: int = 0,
    sampler: SamplerSettings = SAMPLER,
    micro_batch: int = 1,
    progress: Callable[[int, int], Any] | None = None,
) -> list[Pair]:
    """One final pair per case, sampled as ``sampler`` says, which is in few steps by default: a
    look, not a measurement.

    ``progress(done, total)`` may raise to interrupt.
    """
    groups = [Group.of(number, case, 1, f"{seed} look") for number, case in enumerate(cases)]
    pairs: list[Pair] = []
    for members in group_by_shape(groups):
        rollouts = roll_out(
            model,
            members,
            replace(sampler, seed=seed),
            drawn=1,
            micro_batch=micro_batch,
            progress=progress,
        )
        pairs += final_pairs(model, rollouts, micro_batch=micro_batch)
    return pairs

"""How to train by rewards. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ...mmp_core.errors import InputError
from ...mmp_core.options import option
from ...mmp_core.sampler.settings import SamplerSettings
from ..loop.settings import RunSettings

RewardAt = Literal["trajectory", "gain", "output"]
KLReference = Literal["base", "old"]

ROLLOUT_SAMPLER = SamplerSettings(text_steps=32, image_steps=16, text_temperature=1.0)
"""Guided as answers are by default, so that the policy that is trained is the one that people use
(``benchmarks/pararl_study.py``)."""
ROLLOUTS = ("text_steps", "image_steps", "text_temperature", "image_temperature", "joint_guidance")
ROLLOUTS += ("speed",)
"""The settings of the sampler that a run of ParaRL lets choose."""


@dataclass(frozen=True, kw_only=True)
class ParaRLSettings(RunSettings):
    """Settings of ParaRL (arXiv 2511.09611, §3.3); symbols are those of its Eq. 3.

    ``group_size``: G. ``scored_steps``: s. ``clip``: ε. ``kl``: β. ``std_floor``: in units of the
    normalised reward. ``sampler``: of the rollouts; its seed is not used. With speed "cached" they
    are drawn from a policy that differs a little; log-probs are computed anew, without caches.

    Raises ``InputError`` for a value out of range.
    """

    groups: int = option(
        4,
        "Number of instructions per step, over all processes. More make training steadier and "
        "proportionally slower.",
        low=1,
        high=10_000,
    )
    group_size: int = option(
        8,
        "Number of answers to each instruction, which are compared with each other.",
        low=2,
        high=256,
    )
    scored_steps: int = option(
        3,
        "Number of denoising steps, drawn at random, at which each answer is scored and learnt "
        "from.",
        low=1,
        high=256,
    )
    reward_at: RewardAt = option(
        "gain",
        "gain: text and picture are scored while they are half formed, and each of the scored "
        "steps is judged by how much it raised the score. trajectory: it is judged by the score "
        "itself, as in the paper. output: only the finished pair is scored, which did no worse on "
        "the toy world.",
        choices=get_args(RewardAt),
    )
    inner_epochs: int = option(
        1, "Number of updates from the same answers.", low=1, high=64, advanced=True
    )
    clip: float = option(
        0.2,
        "How far one step may change the probability of a token, as a share, before the change "
        "stops counting.",
        above=0,
        high=10,
        step=0.01,
        advanced=True,
    )
    kl: float = option(
        0.05,
        "How strongly the model is held to the reference. If it is too low, the model may learn "
        "to please the reward alone.",
        low=0,
        high=10,
        step=1e-4,
    )
    kl_reference: KLReference = option(
        "base",
        "What kl compares with: the model before training, or the model as it was before the step.",
        choices=get_args(KLReference),
        advanced=True,
    )
    std_floor: float = option(
        0.01, "The smallest standard deviation that advantages are divided by.", above=0
    )
    sampler: SamplerSettings = field(default=ROLLOUT_SAMPLER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler.preset != "corrected" or self.sampler.reveals_early:
            raise InputError(
                "Rollouts need the sampler's preset 'corrected' and speed 'exact' or 'cached', "
                "whose steps unmask what was planned; got "
                f"{self.sampler.preset!r} and {self.sampler.speed!r}."
            )

"""How to train on preferences. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from ...mmp_core.options import option
from ..loop.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class DPOSettings(RunSettings):
    """Settings of DPO (Rafailov et al. 2023, arXiv 2305.18290). ``beta``: β.

    Raises ``InputError`` for a value out of range.
    """

    batch_size: int = option(
        4,
        "Number of comparisons of a picked with a rejected answer per step, over all processes. "
        "More make training steadier and proportionally slower.",
        low=1,
        high=10_000,
    )
    beta: float = option(
        0.1,
        "How strongly the model is held to what it was before training. Lower values let it go "
        "further for the same picks.",
        above=0,
        high=10,
        step=0.01,
    )
    masks: int = option(
        8,
        "Number of masked forms of each answer from which its probability is estimated. More "
        "give less noise and are proportionally slower.",
        low=1,
        high=128,
    )

"""How to train on targets. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...mmp_core.errors import InputError
from ...mmp_core.options import option
from ..loop.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class SFTSettings(RunSettings):
    """Settings of supervised finetuning.

    Conditions are dropped so that guidance keeps working. The paper drops instruction and input
    picture in 10 % of the cases each; a finetuning begins with a model that knows these branches,
    so the defaults are a fifth of that.

    Raises ``InputError`` for a value out of range.
    """

    batch_size: int = option(
        8,
        "Number of items per step, over all processes. More make training steadier and "
        "proportionally slower.",
        low=1,
        high=10_000,
    )
    drop_text: float = option(
        0.02,
        "Share of the items that are trained without the instruction, for guidance.",
        low=0,
        high=1,
        step=0.01,
    )
    drop_image: float = option(
        0.02,
        "Share of the items that are trained without the input picture, for guidance.",
        low=0,
        high=1,
        step=0.01,
    )
    drop_both: float = option(
        0.06,
        "Share of the items that are trained without either, for guidance.",
        low=0,
        high=1,
        step=0.01,
    )

    rehearsal: float = option(
        0.0,
        "Share of each step's items that are guard items, so that the model keeps what it knew. "
        "Half of the guard items are for that; the guard loss is that of the others.",
        low=0,
        high=0.9,
        step=0.05,
    )
    bf16: bool = option(
        False, "Compute float32 weights in bfloat16, which some processors do faster."
    )
    window: int = option(
        1,
        "Steps whose items are sorted by shape together, so that a forward gets many alike. A "
        "step's number of items then varies around batch_size.",
        low=1,
        high=1000,
        advanced=True,
    )
    workers: int = option(
        0,
        "Processes that prepare items ahead. 0: they are prepared in between.",
        low=0,
        high=256,
        advanced=True,
    )

    FREE: ClassVar[tuple[str, ...]] = (*RunSettings.FREE, "workers")

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = (self.drop_text, self.drop_image, self.drop_both)
        if sum(shares) > 1:
            raise InputError(
                f"drop_text, drop_image and drop_both are {shares}: more than 1 in all."
            )

"""What may be chosen when a result is put back on its original. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..options import check, option

Mode = Literal["changed", "mask", "all"]
Fill = Literal["auto", "replace", "difference"]


@dataclass(frozen=True)
class PutBackSettings:
    """Which part of the original is replaced, and by what. Lengths are in pixels of the model's
    picture. Raises ``InputError`` for a value out of range."""

    mode: Mode = option(
        "changed",
        "Which part of the original is replaced. changed: what the model changed, found by "
        "comparing the result with the input after both have gone through the image tokenizer. "
        "mask: the painted area or, without a mask, the image tokens that were drawn anew. all: "
        "everything that the model saw.",
        choices=("changed", "mask", "all"),
    )
    fill: Fill = option(
        "auto",
        "What replaces it. replace: the enlarged result. difference: the original, changed as "
        "the model changed its own view of it, which keeps the original's texture where only "
        "colour or light changes. auto: difference where the result still shows the original's "
        "structure, replace elsewhere.",
        choices=("auto", "replace", "difference"),
    )
    threshold: float = option(
        0.2,
        "Only with mode changed: how strong a change must be to count, relative to the strongest "
        "change nearby. Lower values find more.",
        low=0.02,
        high=0.95,
        step=0.05,
        advanced=True,
    )
    grow: int = option(
        1,
        "Only with mode changed: by how many pixels of the model's picture the changed area "
        "grows on every side.",
        low=0,
        high=256,
        advanced=True,
    )
    feather: int = option(
        2,
        "Width of the soft edge around the replaced area, in pixels of the model's picture. 0: a "
        "hard edge.",
        low=0,
        high=256,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check(self)

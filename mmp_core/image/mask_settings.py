"""What may be chosen about a mask. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..options import check, option

Region = Literal["whole", "mask"]
"""What the model gets of a picture with a mask."""


@dataclass(frozen=True)
class MaskSettings:
    """How a mask selects image tokens, and what the model gets of the picture. Raises
    ``InputError`` for a value out of range."""

    coverage: float = option(
        0.0,
        "An image token is selected when the mask covers more than this share of it. 0: as soon as "
        "the mask touches it.",
        low=0.0,
        high=0.99,
        step=0.05,
        advanced=True,
    )
    grow: int = option(
        0,
        "By how many image tokens the selection grows on every side.",
        low=0,
        high=64,
        advanced=True,
    )
    region: Region = option(
        "whole",
        "Which part of the picture the model sees when there is a mask. whole: the whole "
        "picture, scaled down to the model's size. mask: the area around the mask, at the "
        "picture's own scale if that fits; the result is then that area alone, for Put Back to "
        "place on the original.",
        choices=("whole", "mask"),
    )
    context: float = option(
        0.5,
        "Only with region mask: how far the area extends beyond the mask on every side, as a "
        "multiple of the mask's longer side. A small mask gets a wider margin, until the model "
        "sees the picture at its own scale.",
        low=0.0,
        high=8.0,
        step=0.1,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check(self)

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
        "Image tokens to add on every side of those that the mask selects.",
        low=0,
        high=64,
        advanced=True,
    )
    region: Region = option(
        "whole",
        "What the model gets of a picture with a mask. whole: the picture, shrunk to the model's "
        "size. mask: the part around the mask, at the picture's own scale where that fits; the "
        "result is then that part, to be put back on the picture.",
        choices=("whole", "mask"),
    )
    context: float = option(
        0.5,
        "Of the region around the mask: how far it reaches beyond the mask on every side, in "
        "multiples of the mask's longer side. A small mask gets more, until the model sees the "
        "picture at its own scale.",
        low=0.0,
        high=8.0,
        step=0.1,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check(self)

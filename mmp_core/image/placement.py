"""Where a picture that the model sees lies in the picture it was made from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

Size = tuple[int, int]
"""Width and height in pixels."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels. A picture's first pixel reaches from 0 to 1."""


@dataclass(frozen=True)
class Placement:
    """Where the model's picture lies in the original.

    ``original``: the original's size once it is upright. ``box``: what the model's picture shows,
    in pixels of the original; parts of it may lie beyond the original. ``size``: of the model's
    picture. ``margins``: how many of its pixels, left, top, right and bottom, were added around the
    input picture by extending the canvas.

    Raises ``ValueError`` for sides below 1, an empty box, or margins that leave nothing.
    """

    original: Size
    box: Box
    size: Size
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        left, top, right, bottom = self.margins
        empty = left + right >= self.size[0] or top + bottom >= self.size[1]
        positive = min(*self.original, *self.size) >= 1 and min(self.margins) >= 0
        finite = all(map(math.isfinite, self.box))
        if empty or not positive or not finite or min(self.scale) <= 0:
            raise ValueError(f"{self} describes no part of a picture.")

    @classmethod
    def whole(cls, original: Size) -> Placement:
        """A picture of ``original`` pixels as it is."""
        return cls(original, (0.0, 0.0, float(original[0]), float(original[1])), original)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the original for one of the model's picture, across and down."""
        left, top, right, bottom = self.box
        return (right - left) / self.size[0], (bottom - top) / self.size[1]

    def to_original(self, x: float, y: float) -> tuple[float, float]:
        """The point of the original at a point of the model's picture."""
        return self.box[0] + x * self.scale[0], self.box[1] + y * self.scale[1]

    def to_model(self, x: float, y: float) -> tuple[float, float]:
        """The point of the model's picture at a point of the original."""
        return (x - self.box[0]) / self.scale[0], (y - self.box[1]) / self.scale[1]

    def resized(self, size: Size) -> Placement:
        """The same part of the original in another number of pixels."""
        return replace(self, size=size)

    def cropped(self, left: int, top: int, right: int, bottom: int) -> Placement:
        """What is between these edges, in pixels of the model's picture."""
        box = (*self.to_original(left, top), *self.to_original(right, bottom))
        return replace(self, box=box, size=(right - left, bottom - top))

    def extended(self, left: int, top: int, right: int, bottom: int) -> Placement:
        """With pixels of the model's picture added on each side."""
        width, height = self.size
        wider = self.cropped(-left, -top, width + right, height + bottom)
        added = zip(self.margins, (left, top, right, bottom), strict=True)
        margins = tuple(before + more for before, more in added)
        return replace(wider, margins=margins)

    @property
    def input(self) -> Placement:
        """The placement of the input picture, without what was added around it."""
        left, top, right, bottom = self.margins
        whole = replace(self, margins=(0, 0, 0, 0))
        return whole.cropped(left, top, self.size[0] - right, self.size[1] - bottom)

    def within(self, original: Size, left: float, top: float) -> Placement:
        """The placement in a larger picture, of which ours is the part from (left, top) on."""
        x, y = self.box[0::2], self.box[1::2]
        return replace(
            self, original=original, box=(x[0] + left, y[0] + top, x[1] + left, y[1] + top)
        )

    def in_size(self, original: Size) -> Placement:
        """The placement in the same original, enlarged or reduced to ``original`` pixels."""
        across, down = (new / old for new, old in zip(original, self.original, strict=True))
        left, top, right, bottom = self.box
        box = (left * across, top * down, right * across, bottom * down)
        return replace(self, original=original, box=box)

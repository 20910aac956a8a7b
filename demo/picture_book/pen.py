"""A pen for the picture book: shapes with an outline and a shaded side, four times oversampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .scenes import BOX, PATCH

Colour = tuple[int, int, int]
Point = tuple[float, float]

HEIGHT, WIDTH = BOX[0] * PATCH, BOX[1] * PATCH
_OVER, _ROOM = 4, 12
RGB: dict[str, Colour] = {
    "red": (226, 74, 68),
    "orange": (245, 148, 52),
    "yellow": (252, 214, 76),
    "green": (92, 176, 88),
    "blue": (70, 134, 226),
    "purple": (152, 98, 204),
    "": (255, 255, 255),
}
WOOD, DARK, CREAM, GLOW = (150, 104, 66), (62, 56, 74), (252, 240, 214), (255, 226, 120)
SHADE, EDGE = (40, 30, 90), (40, 24, 60)
"""What the shaded side and the outline of a colour are mixed with."""
LIGHT = {"day": (1.0, 1.0, 1.0), "dusk": (1.0, 0.86, 0.82), "night": (0.6, 0.66, 0.92)}
"""What the light of each time makes of the three channels of a landscape."""
THING_LIGHT = {"day": (1.0, 1.0, 1.0), "dusk": (1.0, 0.9, 0.87), "night": (0.76, 0.77, 0.98)}
"""The same of things, which are to stand out at night."""


def mixed(one: Sequence[float], other: Sequence[float], share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def smooth(points: Sequence[Point]) -> list[Point]:
    """A closed curve through ``points`` (Catmull-Rom)."""
    curve, count = [], len(points)
    for i in range(count):
        a, b, c, d = (points[(i + k) % count] for k in (-1, 0, 1, 2))
        for t in (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875):
            x, y = (
                (
                    2 * b[k]
                    + (c[k] - a[k]) * t
                    + (2 * a[k] - 5 * b[k] + 4 * c[k] - d[k]) * t**2
                    + (3 * b[k] - a[k] - 3 * c[k] + d[k]) * t**3
                )
                / 2
                for k in (0, 1)
            )
            curve.append((x, y))
    return curve


def path(points: str) -> list[Point]:
    """Corners written as in SVG: "0,0 10,5"."""
    corners = (point.split(",") for point in points.split())
    return [(float(x), float(y)) for x, y in corners]


def oval(x: float, y: float, across: float, up: float) -> list[Point]:
    """Centre and radii."""
    turns = (math.tau * i / 48 for i in range(48))
    return [(x + across * math.cos(t), y + up * math.sin(t)) for t in turns]


def box(left: float, bottom: float, right: float, top: float) -> list[Point]:
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


@dataclass(frozen=True)
class Look:
    """How a thing is to be drawn; ``main``: its colour."""

    main: Colour
    ground: str
    time: str


class Pen:
    """Draws on a transparent sheet the size of a slot. Points are pixels, x from the slot's middle
    to the right, y from ``foot`` up, both scaled by ``scale``."""

    def __init__(self, foot: float, scale: float, light: Sequence[float]):
        self.foot, self.scale, self.light = foot, scale, light
        self.sheet = Image.new("RGBA", (WIDTH * _OVER, HEIGHT * _OVER))

    def shape(
        self, points: Sequence[Point], fill: Colour, *, edge: bool = True, shade: float = 4.0
    ) -> None:
        """A filled outline, darker along its right and lower side, ``shade`` pixels wide."""
        mask, corners, at = self._mask(points)
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        self._lay(fill, mask, at)
        if shade:
            shift = round(shade * self.scale * _OVER)
            kept = ImageChops.offset(mask, -shift, -shift // 2)
            self._lay(mixed(fill, SHADE, 0.17), ImageChops.subtract(mask, kept), at)
        if edge:
            width = 1.5 * max(self.scale, 0.75) / self.scale
            self.line([*points, *points[:2]], mixed(fill, EDGE, 0.52), width)

    def line(self, points: Sequence[Point], colour: Colour, width: float = 1.5) -> None:
        mask, corners, at = self._mask(points)
        wide = max(_OVER, round(width * _OVER * self.scale))
        ImageDraw.Draw(mask).line(corners, 255, wide, joint="curve")
        self._lay(colour, mask, at)

    def glow(self, points: Sequence[Point], colour: Colour) -> None:
        """A shape that shines by itself whatever the light."""
        mask, corners, at = self._mask(points)
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        self.sheet.paste((*colour, 255), at, mask)

    def shadow(self, points: Sequence[Point], strength: int) -> None:
        mask, corners, at = self._mask(points)
        ImageDraw.Draw(mask).polygon(corners, fill=strength)
        dark = Image.new("RGBA", mask.size, (30, 36, 70, 0))
        dark.putalpha(mask.filter(ImageFilter.GaussianBlur(_OVER)))
        self.sheet.alpha_composite(dark, at)

    def _mask(self, points: Sequence[Point]) -> tuple[Image.Image, list[Point], tuple[int, int]]:
        """An empty mask around ``points``, the points in it, and where on the sheet it belongs."""
        placed = [
            ((WIDTH / 2 + x * self.scale) * _OVER, (self.foot - y * self.scale) * _OVER)
            for x, y in points
        ]
        across, down = zip(*placed, strict=True)
        left, top = (max(0, int(min(values)) - _ROOM) for values in (across, down))
        right = min(self.sheet.width, int(max(across)) + _ROOM)
        bottom = min(self.sheet.height, int(max(down)) + _ROOM)
        mask = Image.new("L", (max(1, right - left), max(1, bottom - top)))
        return mask, [(x - left, y - top) for x, y in placed], (left, top)

    def _lay(self, colour: Colour, mask: Image.Image, at: tuple[int, int]) -> None:
        lit = tuple(round(c * part) for c, part in zip(colour, self.light, strict=True))
        self.sheet.paste((*lit, 255), at, mask)

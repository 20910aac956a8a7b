"""The book's landscapes: a sky for each time of day over one of the grounds."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .pen import EDGE, LIGHT, SHADE, Colour, Point, mixed
from .scenes import GRID, PATCH

SIDE = GRID * PATCH
HORIZON = 160
_OVER = 4
SKY_RGB: dict[str, tuple[Colour, Colour]] = {
    "day": ((118, 190, 244), (222, 242, 252)),
    "dusk": ((128, 96, 178), (255, 190, 132)),
    "night": ((22, 28, 70), (66, 80, 142)),
}
"""At the top and at the horizon."""
GROUND_RGB: dict[str, tuple[Colour, Colour, Colour]] = {
    "meadow": ((150, 206, 120), (128, 196, 98), (92, 166, 76)),
    "sand": ((92, 178, 214), (248, 224, 164), (234, 200, 132)),
    "snow": ((206, 222, 240), (248, 251, 255), (220, 230, 244)),
    "sea": ((72, 160, 208), (72, 160, 208), (40, 112, 178)),
}
"""Of what lies far away, and of the ground from the horizon to the front."""


def draw(time: str, ground: str) -> Image.Image:
    """(256, 256) RGB."""
    picture = sky(time).copy()
    _Ground(picture, LIGHT[time]).draw(ground)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


@functools.cache
def sky(time: str) -> Image.Image:
    """With stars at night; four times as large as the picture."""
    top, low = SKY_RGB[time]
    share = np.linspace(0, 1, HORIZON * _OVER) ** 1.3
    rows = np.array(top) + (np.array(low) - np.array(top)) * share[:, None]
    pixels = np.zeros((SIDE * _OVER, SIDE * _OVER, 3), np.uint8)
    pixels[: len(rows)] = rows[:, None].round()
    picture = Image.fromarray(pixels)
    if time == "night":
        rng, pen = random.Random(5), ImageDraw.Draw(picture)
        for i in range(44):
            x, y = rng.uniform(4, SIDE - 4) * _OVER, rng.uniform(4, 122) * _OVER
            radius = (1.3 if i % 5 == 0 else 0.75) * _OVER
            colour = mixed((255, 250, 220), low, rng.uniform(0, 0.45))
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    if time == "dusk":
        glow = Image.new("L", picture.size)
        ImageDraw.Draw(glow).ellipse([v * _OVER for v in (20, 118, 236, 202)], fill=150)
        picture.paste((255, 222, 150), mask=glow.filter(ImageFilter.GaussianBlur(22 * _OVER)))
    return picture


def wave(base: float, *parts: tuple[float, float, float]) -> list[Point]:
    """A line across the picture: height ``base`` and waves of (height, length, start)."""
    return [
        (x, base - sum(h * math.sin(math.tau * (x / length + start)) for h, length, start in parts))
        for x in range(-4, SIDE + 5, 2)
    ]


class _Ground:
    """Draws grounds in one light on a picture that is four times as large as its coordinates."""

    def __init__(self, picture: Image.Image, light: Sequence[float]):
        self.picture, self.light, self.pen = picture, light, ImageDraw.Draw(picture)

    def draw(self, ground: str) -> None:
        getattr(self, ground)()

    def lit(self, colour: Sequence[float]) -> Colour:
        return mixed([c * part for c, part in zip(colour, self.light, strict=True)], SHADE, 0)

    def below(self, line: Sequence[Point], colour: Colour) -> None:
        """Fill all below ``line``, which gets a darker edge."""
        corners, large = self.large(line), SIDE * _OVER
        self.pen.polygon([*corners, (large + 16, large), (-16, large)], self.lit(colour))
        self.pen.line(corners, self.lit(mixed(colour, EDGE, 0.25)), 5, joint="curve")

    def fade(self, top: int, near: Colour) -> None:
        """Mix ``near`` in from ``top`` on, wholly at the lower edge."""
        share = np.linspace(0, 255, (SIDE - top) * _OVER).astype(np.uint8)
        mask = Image.fromarray(np.repeat(share[:, None], SIDE * _OVER, 1))
        self.picture.paste(self.lit(near), (0, top * _OVER), mask)

    def scatter(self, seed: int, top: int, rows: int, across: int) -> Iterator[Point]:
        """Points all over the picture from ``top`` on, none near another."""
        rng = random.Random(seed)
        high, wide = (SIDE - 6 - top) / rows, SIDE / across
        for row in range(rows):
            for column in range(across):
                x = (column + (row % 2) / 2 + rng.uniform(0.1, 0.5)) * wide
                yield x % SIDE, top + (row + rng.uniform(0.2, 0.8)) * high

    def large(self, points: Sequence[Point]) -> list[Point]:
        return [(x * _OVER, y * _OVER) for x, y in points]

    def stroke(self, points: Sequence[Point], colour: Colour, width: float = 1.3) -> None:
        self.pen.line(self.large(points), self.lit(colour), round(width * _OVER), joint="curve")

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        corners = self.large([(x - radius, y - radius * 0.8), (x + radius, y + radius * 0.8)])
        self.pen.ellipse([*corners[0], *corners[1]], self.lit(colour))

    def ripple(self, x: float, y: float, colour: Colour) -> None:
        self.stroke([(x + i, y - 1.6 * math.sin(i / 4 * math.pi)) for i in range(-8, 9)], colour)

    def meadow(self) -> None:
        far, near, front = GROUND_RGB["meadow"]
        self.below(wave(146, (9, 170, 0.1), (4, 90, 0.4)), far)
        self.below(wave(160, (5, 240, 0.55), (2, 120, 0.0)), near)
        self.fade(176, front)
        for i, (x, y) in enumerate(self.scatter(1, 172, 4, 7)):
            for lean in (-2.2, 0, 2.2):
                self.stroke([(x, y), (x + lean, y - 4.5)], (74, 146, 64))
            if i % 3 == 0 and y > 218 and x < SIDE - 12:
                for turn in range(5):
                    angle = math.tau * turn / 5
                    self.dot(
                        x + 7 + 2 * math.cos(angle), y + 2 * math.sin(angle), 1.5, (255, 255, 255)
                    )
                self.dot(x + 7, y, 1.3, (252, 206, 70))

    def sand(self) -> None:
        far, near, front = GROUND_RGB["sand"]
        self.below(wave(148), far)
        for x in range(14, SIDE, 38):
            self.ripple(x, 153 + x % 4, (206, 238, 246))
        self.below(wave(165, (3, 200, 0.2), (1.5, 70, 0.0)), near)
        self.fade(180, front)
        for x, y in self.scatter(3, 174, 6, 9):
            self.dot(x, y, 1.1, (208, 168, 104))
        for x, y, colour in ((44, 240, (240, 128, 104)), (206, 236, (236, 148, 168))):
            for turn in range(5):
                angle = math.tau * turn / 5 - 0.3
                tip = (x + 6 * math.cos(angle), y + 5 * math.sin(angle))
                self.stroke([(x, y), tip], colour, 2.6)

    def snow(self) -> None:
        far, near, front = GROUND_RGB["snow"]
        peaks = [(-4, 160), (24, 138), (50, 152), (86, 130), (120, 154), (150, 140), (178, 153)]
        peaks += [(214, 132), (260, 158)]
        self.below(peaks, mixed(far, (128, 150, 196), 0.5))
        for x, y in peaks[1:-1:2]:
            cap = [
                (x, y),
                (x + 11, y + 8),
                (x + 4, y + 6),
                (x, y + 10),
                (x - 5, y + 6),
                (x - 11, y + 8),
            ]
            self.pen.polygon(self.large(cap), self.lit(near))
        self.below(wave(160, (4, 200, 0.3), (2, 110, 0.6)), near)
        self.fade(182, front)
        for x, y in self.scatter(4, 176, 4, 5):
            self.stroke([(x - 7, y), (x, y - 2), (x + 7, y)], (196, 210, 236))

    def sea(self) -> None:
        far, _, front = GROUND_RGB["sea"]
        self.below(wave(154), far)
        self.fade(158, front)
        for x, y in self.scatter(6, 160, 7, 5):
            self.ripple(x, y, mixed(far, (214, 240, 250), 0.6))

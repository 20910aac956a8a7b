"""Pictures of scenes: one 32×32 patch per cell."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from .scenes import BACKGROUNDS, CONTENTS, Object, Scene

PATCH = 32
_SCALE = 8
_RGB = {
    "red": (214, 48, 49),
    "orange": (240, 140, 30),
    "yellow": (247, 208, 40),
    "green": (32, 150, 72),
    "blue": (40, 92, 214),
    "purple": (140, 66, 180),
}
_BACKGROUND_RGB = {
    "white": (250, 248, 242),
    "black": (38, 38, 46),
    "green": (196, 232, 190),
    "blue": (190, 218, 246),
}


def _points(shape: str) -> list[tuple[float, float]]:
    """Corners of a polygonal shape in the unit square."""

    def ring(n: int, radii: tuple[float, ...], turn: float = -90.0) -> list[tuple[float, float]]:
        angles = [math.radians(turn + 360 * i / n) for i in range(n)]
        return [
            (0.5 + radii[i % len(radii)] * math.cos(t), 0.5 + radii[i % len(radii)] * math.sin(t))
            for i, t in enumerate(angles)
        ]

    arm, end = 0.13, 0.36
    cross = [(-arm, -end), (arm, -end), (arm, -arm)]
    for _ in range(3):  # a quarter turned on
        cross += [(-y, x) for x, y in cross[-3:]]
    return {
        "square": ring(4, (0.46,), -45.0),
        "triangle": [(0.5, 0.14), (0.87, 0.8), (0.13, 0.8)],
        "star": ring(10, (0.42, 0.19)),
        "diamond": [(0.5, 0.1), (0.8, 0.5), (0.5, 0.9), (0.2, 0.5)],
        "cross": [(0.5 + x, 0.5 + y) for x, y in cross],
    }[shape]


def patch(background: str, content: Object | None, size: int = PATCH) -> Image.Image:
    """One cell of ``size`` pixels, antialiased, with a darker rim around the object."""
    side = PATCH * _SCALE
    image = Image.new("RGB", (side, side), _BACKGROUND_RGB[background])
    if content is not None:
        shape, colour = content
        fill = _RGB[colour]
        rim = tuple(int(0.62 * c) for c in fill)
        draw = ImageDraw.Draw(image)
        if shape == "circle":
            box = (0.14 * side, 0.14 * side, 0.86 * side, 0.86 * side)
            draw.ellipse(box, fill=fill, outline=rim, width=_SCALE)
        else:
            corners = [(x * side, y * side) for x, y in _points(shape)]
            draw.polygon(corners, fill=fill)
            draw.line([*corners, *corners[:2]], fill=rim, width=_SCALE, joint="curve")
    return image.resize((size, size), Image.Resampling.BOX)


@functools.cache
def patches() -> np.ndarray:
    """(codes, 32, 32, 3) uint8: the patch of every code, in the order of ``Scene.codes``."""
    return np.stack([np.asarray(patch(b, c)) for b in BACKGROUNDS for c in CONTENTS])


def render(scene: Scene) -> Image.Image:
    tiles = patches()[np.asarray(scene.codes())]
    height, width = scene.grid
    pixels = tiles.transpose(0, 2, 1, 3, 4).reshape(height * PATCH, width * PATCH, 3)
    return Image.fromarray(pixels)


def enlarged(scene: Scene, cell: int) -> Image.Image:
    """``scene``, drawn anew with cells of ``cell`` pixels."""
    rows, columns = scene.grid
    picture = Image.new("RGB", (columns * cell, rows * cell))
    for row, contents in enumerate(scene.cells):
        for column, content in enumerate(contents):
            tile = patch(scene.background, content, cell)
            picture.paste(tile, (column * cell, row * cell))
    return picture

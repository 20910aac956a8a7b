"""Large pictures of scenes, with fine grain that no model of their size could draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .worlds import AnyScene

SIDE = 1024
"""Of an enlarged scene, in pixels."""
WALL = (1536, 1024)
PAINTING = (640, 320, 896, 576)
"""Where the scene hangs on the wall: left, top, right and bottom edge in pixels."""
_FLOOR = 832
_FRAME = 20


def on_paper(scene: AnyScene) -> Image.Image:
    """``scene``, large, as if printed on rough paper."""
    return _grained(scene.large(SIDE), amount=7.0)


def on_a_wall(scene: AnyScene, others: Sequence[AnyScene]) -> Image.Image:
    """A room in which ``scene`` hangs at :data:`PAINTING`, between two ``others``."""
    across, down = np.meshgrid(np.linspace(0, 1, WALL[0]), np.linspace(0, 1, WALL[1]))
    light = 1.05 - 0.35 * np.hypot(across - 0.45, down - 0.2)
    plaster = np.array([214.0, 206.0, 190.0]) * light[..., None]
    room = Image.fromarray(plaster.clip(0, 255).astype(np.uint8))
    _draw_floor(room)
    places = ((160, 256, 480, 576), PAINTING, (1088, 288, 1376, 576))
    for place, painted in zip(places, (others[0], scene, others[1]), strict=True):
        _hang(room, place, painted)
    return _grained(room, amount=5.0)


def _draw_floor(room: Image.Image) -> None:
    draw = ImageDraw.Draw(room)
    draw.rectangle((0, _FLOOR - 22, WALL[0], _FLOOR), fill=(236, 232, 224))
    for board, left in enumerate(range(-900, 2500, 90)):
        shade = (board * 37) % 23 - 11
        colour = (150 + shade, 104 + shade, 66 + shade)
        middle = WALL[0] // 2
        ends = (middle + (left - middle) * 1.6, middle + (left + 90 - middle) * 1.6)
        corners = [(left, _FLOOR), (left + 90, _FLOOR), (ends[1], WALL[1]), (ends[0], WALL[1])]
        draw.polygon(corners, fill=colour, outline=(96, 64, 40))


def _hang(room: Image.Image, place: tuple[int, int, int, int], scene: AnyScene) -> None:
    """Draw a framed painting and its shadow; only the painting's own pixels are the scene."""
    left, top, right, bottom = place
    edges = (left - _FRAME, top - _FRAME, right + _FRAME, bottom + _FRAME)
    shadow = Image.new("L", room.size)
    ImageDraw.Draw(shadow).rectangle([edge + 12 for edge in edges], fill=120)
    room.paste((60, 52, 44), mask=shadow.filter(ImageFilter.GaussianBlur(10)))
    draw = ImageDraw.Draw(room)
    for inset, colour in enumerate(((92, 60, 30), (150, 104, 52), (196, 150, 84), (120, 82, 42))):
        step = inset * _FRAME // 4
        draw.rectangle(
            (edges[0] + step, edges[1] + step, edges[2] - step - 1, edges[3] - step - 1),
            fill=colour,
        )
    room.paste(scene.large(right - left), (left, top))


def _grained(picture: Image.Image, amount: float) -> Image.Image:
    """With the same grain each time, of ``amount`` levels."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, amount, (picture.height, picture.width, 1))
    levels = np.asarray(picture, float) + grain
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))

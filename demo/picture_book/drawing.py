"""Pictures of the book's scenes. A landscape is drawn once, each thing once for each light and
ground; a scene lays them together."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from .landscapes import draw
from .pen import HEIGHT, RGB, THING_LIGHT, WIDTH, Look, Pen
from .scenes import BOX, COLOURS, PATCH, PLAIN, SIZES, TOPS, Scene, Thing
from .things import DRAWN, FEET

SHRINK = 0.56
"""Scale of small things."""


@functools.cache
def sprite(thing: Thing, ground: str, time: str) -> np.ndarray:
    """(96, 64, 4) float32, colour premultiplied by alpha, in 0 … 255 and 0 … 1."""
    scale = 1.0 if thing.size == "big" else SHRINK
    pen = Pen(FEET[thing.kind][SIZES.index(thing.size)], scale, THING_LIGHT[time])
    look = Look(RGB[thing.colour], ground, time)
    DRAWN[thing.kind](pen, look)
    pixels = np.asarray(pen.sheet.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float32)
    alpha = pixels[..., 3:] / 255
    return np.concatenate((pixels[..., :3] * alpha, alpha), axis=2)


@functools.cache
def footprint(kind: str, size: str) -> np.ndarray:
    """(3, 2) bool: the patches of its slot that a thing covers."""
    thing = Thing(kind, "" if kind in PLAIN else COLOURS[0], size)
    alpha = sprite(thing, "sea", "day")[..., 3]
    patches = alpha.reshape(BOX[0], PATCH, BOX[1], PATCH)
    return patches.max(axis=(1, 3)) > 0.02


def paint(scene: Scene) -> np.ndarray:
    """(256, 256, 3) uint8."""
    pixels = landscape(scene.time, scene.ground).copy()
    for slot, thing in scene.placed().items():
        top, left = TOPS[slot.layer] * PATCH, slot.column * WIDTH
        part = pixels[top : top + HEIGHT, left : left + WIDTH]
        drawn = sprite(thing, scene.ground if slot.layer == "ground" else "", scene.time)
        part *= 1 - drawn[..., 3:]
        part += drawn[..., :3]
    return (pixels + 0.5).astype(np.uint8)


@functools.cache
def landscape(time: str, ground: str) -> np.ndarray:
    """(256, 256, 3) float32: sky and ground without things."""
    return np.asarray(draw(time, ground), np.float32)

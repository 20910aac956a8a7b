"""Reads a scene from a picture by drawing it: what a slot holds is whatever it looks most like when
drawn, of all that it can hold. A patch that looks like none of that, or clearly more like something
else, is unclear, and a picture with unclear patches shows no scene: a red cat with the tail of a
blue one is not read as a cat."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .drawing import landscape, sprite
from .pen import HEIGHT, WIDTH
from .scenes import BOX, CONTENTS, GRID, GROUNDS, PATCH, SLOTS, TIMES, TOPS, Scene, Slot, Thing
from .words import a, on_the

_STEP = 2
"""Pixels along one that is compared: noise and fine differences of a tokenizer average out."""
_UNIT = PATCH // _STEP
CLEAR = 24.0
"""Root mean square difference, of 255 levels, up to which a patch looks like what it is read as."""
RIVAL = 8.0
"""The same by which it may look more like the patch of another content."""
_FREE_ROWS = [
    row for row in range(GRID) if all(not top <= row < top + BOX[0] for top in TOPS.values())
]


@dataclass(frozen=True)
class Reading:
    """``likeliest``: the scene that is most like the picture; ``unclear``: slots that do not look
    like what it has there; ``landscape``: whether the patches between the slots look like it."""

    likeliest: Scene
    unclear: tuple[Slot, ...]
    landscape: bool

    @property
    def scene(self) -> Scene | None:
        """``None`` where not all of the picture is clear."""
        return self.likeliest if self.landscape and not self.unclear else None

    def kept(self, before: Scene | None, after: Scene) -> float:
        """Share of slots, sky and ground that ``after`` has as ``before`` and the picture, too."""
        if before is None:
            return 1.0
        same = [self._shows(slot, before) for slot in SLOTS if before.at(slot) == after.at(slot)]
        for part in ("time", "ground"):
            if (wanted := getattr(before, part)) == getattr(after, part):
                same.append(self.landscape and getattr(self.likeliest, part) == wanted)
        return sum(same) / len(same)

    def spoilt(self, before: Scene | None, after: Scene) -> Iterator[str]:
        """In words, what differs from ``before`` that ``after`` leaves alone."""
        if before is None:
            return
        for part in ("time", "ground"):
            old, new = getattr(before, part), getattr(self.likeliest, part)
            if old == getattr(after, part) and new != old:
                yield f"the {part} became {new} instead of {old}"
        if not self.landscape:
            yield "the landscape is unclear"
        for slot in SLOTS:
            if before.at(slot) == after.at(slot) and not self._shows(slot, before):
                yield self._difference(slot, before)

    def _shows(self, slot: Slot, scene: Scene) -> bool:
        return slot not in self.unclear and self.likeliest.at(slot) == scene.at(slot)

    def _difference(self, slot: Slot, before: Scene) -> str:
        old, new = before.at(slot), self.likeliest.at(slot)
        where = f"{'in the sky ' if slot.layer == 'sky' else ''}{on_the(slot.column)}"
        was = f"{a(old, before)} {where}" if old else f"an empty place {where}"
        if slot in self.unclear:
            return f"{was} became unclear"
        return f"{was} became {a(new, self.likeliest) if new else 'empty'}"


def read(picture: Image.Image) -> Reading:
    """What ``picture``, of any size, shows."""
    pixels = _reduced(np.asarray(picture.convert("RGB").resize((GRID * PATCH, GRID * PATCH))))
    free = _by_patch(pixels)[_FREE_ROWS]
    gaps = {
        (time, ground): _gaps(free, _by_patch(_reduced(landscape(time, ground)))[_FREE_ROWS])
        for time in TIMES
        for ground in GROUNDS
    }
    time, ground = min(gaps, key=lambda each: gaps[each].clip(max=4 * CLEAR**2).sum())
    contents, unclear = [], []
    for slot in SLOTS:
        thing, clear = _content(pixels, slot, time, ground)
        contents.append(thing)
        if not clear:
            unclear.append(slot)
    clear = bool(gaps[time, ground].max() <= CLEAR**2)
    return Reading(Scene(time, ground, tuple(contents)), tuple(unclear), clear)


def _content(pixels: np.ndarray, slot: Slot, time: str, ground: str) -> tuple[Thing | None, bool]:
    """What ``slot`` holds, and whether each of its patches looks like it."""
    shown = _by_patch(_cut(pixels, slot, _STEP)).reshape(-1)
    drawn = _drawn(slot, time, ground if slot.layer == "ground" else GROUNDS[0])
    gaps = ((drawn - shown) ** 2).reshape(len(drawn), BOX[0] * BOX[1], -1).mean(2)
    best = int(gaps.sum(1).argmin())
    rivals = gaps[best] - gaps.min(0)
    clear = gaps[best].max() <= CLEAR**2 and rivals.max() <= RIVAL**2
    return (None, *CONTENTS[slot.layer])[best], bool(clear)


@functools.cache
def _drawn(slot: Slot, time: str, ground: str) -> np.ndarray:
    """(contents, values) float32: the slot with each of its contents, nothing first."""
    behind = _cut(landscape(time, ground), slot, 1)
    pictures = [behind]
    for thing in CONTENTS[slot.layer]:
        drawn = sprite(thing, ground if slot.layer == "ground" else "", time)
        pictures.append(behind * (1 - drawn[..., 3:]) + drawn[..., :3])
    return np.stack([_by_patch(_reduced(each)).reshape(-1) for each in pictures])


def _cut(pixels: np.ndarray, slot: Slot, step: int) -> np.ndarray:
    top, left = TOPS[slot.layer] * PATCH // step, slot.column * WIDTH // step
    return pixels[top : top + HEIGHT // step, left : left + WIDTH // step]


def _reduced(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[0] // _STEP, pixels.shape[1] // _STEP
    blocks = pixels.astype(np.float32).reshape(height, _STEP, width, _STEP, 3)
    return blocks.mean(axis=(1, 3))


def _by_patch(pixels: np.ndarray) -> np.ndarray:
    """(rows, columns, 16, 16, 3)."""
    rows, columns = pixels.shape[0] // _UNIT, pixels.shape[1] // _UNIT
    return pixels.reshape(rows, _UNIT, columns, _UNIT, 3).swapaxes(1, 2)


def _gaps(patches: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(rows, columns): mean square difference of each patch."""
    return ((patches - others) ** 2).mean(axis=(2, 3, 4))


def spaced(sentence: str) -> list[str]:
    """The words of a sentence, points and commas each apart."""
    return sentence.lower().replace(".", " . ").replace(",", " , ").split()

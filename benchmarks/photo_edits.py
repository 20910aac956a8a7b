"""Known edits of photographs at full resolution: what a perfect editing model would give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

Array = np.ndarray


@dataclass(frozen=True)
class Edit:
    """``truth``: the edited picture, (H, W, 3) uint8. ``changed``: (H, W) bool, where it differs
    from the original."""

    kind: str
    truth: Array
    changed: Array


def edits_of(
    photo: Array, other: Array, seed: int, kinds: Collection[str] | None = None
) -> Iterator[Edit]:
    """One edit of each of ``kinds``. ``photo``, ``other``: (H, W, 3) uint8; objects come from the
    other."""
    for kind, edit in KINDS.items():
        if kinds is None or kind in kinds:
            truth = edit(photo, other, np.random.default_rng(seed))
            yield Edit(kind, truth, (truth != photo).any(2))


def blob(rng: np.random.Generator, shape: tuple[int, int], share: float) -> Array:
    """(H, W) bool: a smooth closed outline about the middle half of the picture, which takes about
    ``share`` of it."""
    height, width = shape
    centre = rng.uniform(0.38, 0.62, 2) * shape
    y, x = np.ogrid[:height, :width]
    stretch = rng.uniform(0.75, 1.33)
    dy, dx = (y - centre[0]) * stretch, (x - centre[1]) / stretch
    angle = np.arctan2(dy, dx)
    outline = 1 + sum(
        rng.uniform(-0.18, 0.18) * np.cos(n * angle + rng.uniform(0, 6.3)) for n in (2, 3, 5)
    )
    return np.hypot(dy, dx) < outline * np.sqrt(share * height * width / np.pi)


def recoloured(photo: Array, other: Array, rng: np.random.Generator) -> Array:
    """The channels of a region change places, and its colours become stronger."""
    region = blob(rng, photo.shape[:2], rng.uniform(0.08, 0.2))
    return _painted(photo, region, lambda pixels: _tinted(pixels, rng.uniform(0, 1)))


def relit(photo: Array, other: Array, rng: np.random.Generator) -> Array:
    """Warm light from one side over the whole picture."""
    height, width = photo.shape[:2]
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)
    gain = 0.9 + 0.5 * (np.cos(direction) * x + np.sin(direction) * y)
    warm = np.array([1.1, 1.0, 0.8], np.float32)
    return _levels(photo * (gain[..., None] * warm).astype(np.float32) + 6)


def pasted(photo: Array, other: Array, rng: np.random.Generator) -> Array:
    """A piece of the other photograph lies on this one."""
    region = blob(rng, photo.shape[:2], rng.uniform(0.08, 0.2))
    return np.where(region[..., None], _like(photo, other), photo)


def removed(photo: Array, other: Array, rng: np.random.Generator) -> Array:
    """A region shows what lies beside it, mirrored about its edge and smoothed into place."""
    region = blob(rng, photo.shape[:2], rng.uniform(0.06, 0.15))
    columns = np.flatnonzero(region.any(0))
    beside = np.roll(photo, len(columns) * (1 if columns.mean() > photo.shape[1] / 2 else -1), 1)
    return np.where(region[..., None], beside, photo)


def rebackgrounded(photo: Array, other: Array, rng: np.random.Generator) -> Array:
    """All but a subject in the middle is another photograph."""
    region = blob(rng, photo.shape[:2], rng.uniform(0.25, 0.4))
    return np.where(region[..., None], photo, _like(photo, other))


def backdrop_recoloured(photo: Array, other: Array, rng: np.random.Generator) -> Array:
    """All but a subject in the middle takes another colour."""
    region = ~blob(rng, photo.shape[:2], rng.uniform(0.25, 0.4))
    return _painted(photo, region, lambda pixels: _tinted(pixels, rng.uniform(0, 1)))


KINDS: dict[str, Callable[[Array, Array, np.random.Generator], Array]] = {
    "recolour": recoloured,
    "relight": relit,
    "paste": pasted,
    "remove": removed,
    "background": rebackgrounded,
    "background colour": backdrop_recoloured,
}


def _like(photo: Array, other: Array) -> Array:
    size = photo.shape[1], photo.shape[0]
    return np.asarray(Image.fromarray(other).resize(size, Image.Resampling.LANCZOS))


def _painted(photo: Array, region: Array, paint: Callable[[Array], Array]) -> Array:
    truth = photo.copy()
    truth[region] = paint(photo[region])
    return truth


def _tinted(pixels: Array, hue: float) -> Array:
    """(N, 3) levels of one hue, as bright as they were."""
    brightness = pixels @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    phases = 2 * np.pi * (hue + np.array([0, 1 / 3, 2 / 3]))
    tint = 0.5 + 0.5 * np.cos(phases)
    return _levels(255 * (0.25 * tint + 0.75 * brightness[:, None] * (0.4 + 0.9 * tint)))


def _levels(values: Array) -> Array:
    return values.clip(0, 255).round().astype(np.uint8)

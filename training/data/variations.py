"""Items in other words and other forms: captions, templates, mirrored, cropped."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.errors import InputError, sentence
from ...mmp_core.image.masks import cells_of, mask_values
from ...mmp_core.image.pictures import Size
from ...mmp_core.pipeline import grid_of
from ...mmp_core.variants.base import Variant
from .items import MOST_ITEMS, Item, Picture
from .settings import DataSettings

_SIDES = re.compile(
    r"\b(left|right|clockwise|anticlockwise|text|writ\w*|words?|letters?|read\w*|sign|signs|"
    r"says|saying|numbers?|digits?|logo|east|west)\b|[\"“”]",
    re.IGNORECASE,
)
_PLACES = re.compile(
    r"\b(left|right|top|bottom|upper|lower|corners?|edges?|borders?|cent\w+|middle|rows?|columns?|"
    r"background|sky|whole|entire|everything|frame|count|all|every|north|south|east|west)\b",
    re.IGNORECASE,
)
_LEAST_CROP = 0.6
"""Sides of a crop, as a share of those of the picture, at least."""
_SPECKS = 0.02
"""Share of an image token that changed pixels must cover: lossy files differ here and there."""
CHANGED = 0.06
"""How far a channel of a pixel must differ, as a share of its range, to count as changed."""


def varied(
    items: Sequence[Item],
    settings: DataSettings,
    repeats: int = 1,
    callback: Callable[[int, int], None] | None = None,
) -> list[Item]:
    """``items`` as ``settings`` say, ``repeats`` times, each time in the next template's words.

    ``callback(done, total)`` is called now and then. Raises ``InputError`` for more than
    :data:`MOST_ITEMS`.
    """
    whole: list[Item] = []
    forms, total = 1 + settings.mirrored + settings.crops, len(items) * repeats
    if total * forms > MOST_ITEMS:
        raise InputError(
            f"{len(items):,} items, used {repeats} times in {forms} form(s), are more than "
            f"{MOST_ITEMS:,}, which would not fit into memory: lower repeats, crops or limit."
        )
    for turn in range(repeats):
        for number, item in enumerate(items):
            if callback and (settings.crops or len(whole) % 1000 == 999):  # a crop reads pictures
                callback(turn * len(items) + number, total)
            for form in _forms(item, settings):
                words = settings.instruction(form.instruction, number + turn)
                whole.append(
                    replace(form, instruction=words, outside_weight=settings.outside_weight)
                )
    return whole


def described(item: Item) -> Item:
    """An item of a picture and what it shows as one that asks for the picture; its reasoning, if
    it has none, is the description. Raises ``InputError`` for one without a picture."""
    if item.target is not None:
        return item
    if item.image is None:
        raise InputError("it has no picture for its description.")
    think = item.think or item.instruction
    return replace(item, image=None, target=item.image, think=think)


def _forms(item: Item, settings: DataSettings) -> Iterator[Item]:
    item = replace(item, made_from=item.origin)
    yield item
    said = f"{item.instruction} {item.think or ''}"
    if settings.mirrored and not _SIDES.search(said):
        yield _changed(item, "mirrored", ImageOps.mirror, _same)
    if settings.crops and not _PLACES.search(said):
        yield from _crops(item, settings.crops)


def _changed(
    item: Item,
    how: str,
    change: Callable[[Image.Image], Image.Image],
    size: Callable[[Size], Size],
) -> Item:
    def changed(picture: Picture | None) -> Picture | None:
        if picture is None:
            return None
        digest = hashlib.sha256(f"{picture.digest} {how}".encode()).hexdigest()
        return Picture(digest, size(picture.size), partial(_read_changed, picture, change))

    pictures = {name: changed(getattr(item, name)) for name in ("image", "target", "mask")}
    return replace(item, name=f"{item.name} ({how})", facts=None, **pictures)


def _read_changed(picture: Picture, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    return change(picture.read())


def _crops(item: Item, count: int) -> Iterator[Item]:
    first = item.target or item.image
    if first is None:
        return
    inside = _changed_box(item)
    rng = random.Random(item.origin)
    for number in range(1, count + 1):
        edges = _window(rng, inside)
        crop, size_of = partial(_cropped, edges), partial(_size_of, edges)
        yield _changed(item, f"part {number}", crop, size_of)


def _same(size: Size) -> Size:
    return size


def _cropped(edges: tuple[float, ...], picture: Image.Image) -> Image.Image:
    return picture.crop(_box(edges, picture.size))


def _size_of(edges: tuple[float, ...], size: Size) -> Size:
    left, top, right, bottom = _box(edges, size)
    return right - left, bottom - top


def _box(edges: tuple[float, ...], size: Size) -> tuple[int, int, int, int]:
    (width, height), (a, b, c, d) = size, edges
    return round(a * width), round(b * height), round(c * width), round(d * height)


def _window(rng: random.Random, inside: tuple[float, ...]) -> tuple[float, ...]:
    """A part with both sides scaled alike that holds ``inside``; edges from 0 to 1."""
    least = max(_LEAST_CROP, inside[2] - inside[0], inside[3] - inside[1])
    side = rng.uniform(least, 1.0)
    edges = []
    for low, high in ((inside[0], inside[2]), (inside[1], inside[3])):
        first, last = max(0.0, high - side), min(1.0 - side, low)
        edges.append(rng.uniform(first, max(first, last)))
    return edges[0], edges[1], edges[0] + side, edges[1] + side


def _changed_box(item: Item) -> tuple[float, ...]:
    """Edges of what an edit changes, 0 to 1; the middle where nothing is compared."""
    if item.image is None or item.target is None:
        return 0.5, 0.5, 0.5, 0.5
    changed = changed_pixels(item.image.read(), item.target.read())
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0.5, 0.5, 0.5, 0.5
    height, width = changed.shape
    return (
        columns[0] / width,
        rows[0] / height,
        (columns[-1] + 1) / width,
        (rows[-1] + 1) / height,
    )


def changed_pixels(before: Image.Image, after: Image.Image) -> np.ndarray:
    """(h, w) bool, of the size of ``after``: where two pictures of one shape differ by more than
    what resizing and lossy files leave."""
    first = before.convert("RGB").resize(after.size, Image.Resampling.BILINEAR)
    difference = np.abs(np.asarray(first, np.int16) - np.asarray(after.convert("RGB"), np.int16))
    return difference.max(axis=-1) > CHANGED * 255


def image_weight(model: Model, item: Item, size: Size) -> Tensor | None:
    """(1, H, W): 1 where the target matters, ``item.outside_weight`` elsewhere; ``None`` for 1
    everywhere. Raises ``InputError`` where it matters nowhere."""
    if item.outside_weight == 1 or item.target is None:
        return None
    matters = changed_cells(item, model.variant, size, grid_of(model, size))
    if matters is None:
        return None
    if not matters.any():
        raise InputError(
            sentence("its mask is black all over: paint what matters white, or remove it.")
            if item.mask is not None
            else sentence("its picture and its target do not differ: replace one, or give a mask.")
        )
    return torch.where(matters, 1.0, item.outside_weight)


def changed_cells(item: Item, variant: Variant, size: Size, grid: tuple[int, int]) -> Tensor | None:
    """(1, H, W) bool: the image tokens under the item's mask or, without one, where its picture and
    its target differ; ``None`` where there is neither."""
    if item.mask is not None:
        return cells_of(mask_values(variant.fit(item.mask.read(), size)), grid)
    if item.image is None or item.target is None:
        return None
    before, after = (variant.fit(picture.read(), size) for picture in (item.image, item.target))
    changed = torch.from_numpy(changed_pixels(before, after))[None].float()
    return cells_of(changed, grid, _SPECKS, grow=1)

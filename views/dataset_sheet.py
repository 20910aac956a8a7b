"""A dataset at a glance: pictures, their targets and what they are to teach."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..training.data.items import Item, Picture
from .sheet import Word, beside, contact_sheet

_PAPER, _EMPTY, _FAINT = "#ffffff", "#f0f0f2", "#8e8e96"
_GAP = 12


def dataset_sheet(items: Sequence[Item], *, columns: int = 2, side: int = 192) -> Image.Image:
    """One frame per item: its picture and, where any item has one, its target, beside the
    instruction and, fainter, the reasoning. ``side``: of each picture in pixels.

    Raises ``InputError`` where a picture can no longer be read.
    """
    with_targets = any(item.target is not None for item in items)
    return contact_sheet([_frame(item, side, with_targets) for item in items], columns)


def _frame(item: Item, side: int, with_targets: bool) -> Image.Image:
    shown = [_shown(item.image, side, "to generate")]
    if with_targets:
        shown.append(_shown(item.target, side, "no target"))
    pitch = side + side // _GAP
    strip = Image.new("RGB", (pitch * (len(shown) - 1) + side, side), _PAPER)
    for number, picture in enumerate(shown):
        strip.paste(picture, (number * pitch, 0))
    words = [Word(word) for word in item.instruction.split()]
    words += [Word(word, decided=False) for word in (item.think or "").split()]
    return beside(strip, words, item.name)


def _shown(picture: Picture | None, side: int, otherwise: str) -> Image.Image:
    """A square with ``picture`` whole, or with the words ``otherwise``."""
    if picture is not None:
        return ImageOps.pad(picture.read(), (side, side), color=_PAPER)
    square = Image.new("RGB", (side, side), _EMPTY)
    font = ImageFont.load_default(side // 12)
    middle = side / 2, side / 2
    ImageDraw.Draw(square).text(middle, otherwise, fill=_FAINT, font=font, anchor="mm")
    return square

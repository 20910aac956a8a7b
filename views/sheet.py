"""Frames of a picture beside its words, and contact sheets of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..mmp_core.variants.base import MASKED_TEXT

MASK_SIGN = "·"
"""What stands for a masked token inside a word: the default font lacks ░. Alone, it is drawn as a
block."""
_PAPER, _INK, _FAINT, _NEW = "#ffffff", "#1c1c1e", "#b4b4bc", "#ffe28a"
_LINE, _SMALLEST, _BLOCK = 1.45, 8, 0.7


@dataclass(frozen=True)
class Word:
    """``masked`` (in part) and ``new`` (unmasked since the frame before) say how it is drawn."""

    text: str
    masked: bool = False
    new: bool = False


def beside(picture: Image.Image, words: Sequence[Word], title: str) -> Image.Image:
    """``picture`` left, ``words`` right of it, wrapped to the picture's width; a long text is set
    smaller, and what still does not fit is left out with an ellipsis. Sides are even: for video."""
    margin = _margin(picture.height)
    frame = _blank(2 * picture.width, picture.height)
    frame.paste(picture, (margin, margin))
    return _written(frame, picture.width + 2 * margin, words, title)


def alone(side: int, words: Sequence[Word], title: str) -> Image.Image:
    """As :func:`beside` a picture of ``side`` pixels, where there is none."""
    return _written(_blank(2 * side, side), _margin(side), words, title)


def _margin(height: int) -> int:
    return max(8, height // 24)


def _blank(width: int, height: int) -> Image.Image:
    """Paper of even sides around ``width`` x ``height`` pixels, with margins."""
    margin = _margin(height)
    width, height = width + 3 * margin, height + 2 * margin
    return Image.new("RGB", (width + width % 2, height + height % 2), _PAPER)


def _written(frame: Image.Image, left: int, words: Sequence[Word], title: str) -> Image.Image:
    height = frame.height - frame.height // 13
    margin, size = _margin(height), max(12, height // 15)
    draw = ImageDraw.Draw(frame)
    small = ImageFont.load_default(0.8 * size)
    draw.text((left, margin), title, fill=_FAINT, font=small)
    box = (left, margin + 2 * size, frame.width - margin, frame.height - margin)
    lines_in(draw, words, box, size)
    return frame


def lines_in(
    draw: ImageDraw.ImageDraw, words: Sequence[Word], box: tuple[int, int, int, int], size: int
) -> None:
    """Write ``words`` in lines into ``box``, in letters of ``size`` pixels or, where they do not
    fit, smaller ones; what still does not fit is left out with an ellipsis."""
    for smaller in range(size, _SMALLEST - 1, -1):
        places = _placed(words, box, smaller)
        if len(places) == len(words) or smaller == _SMALLEST:
            _write(draw, words, places, smaller)
            break


def _is_block(word: Word) -> bool:
    return word.text in (MASKED_TEXT, MASK_SIGN)


def _placed(
    words: Sequence[Word], box: tuple[int, int, int, int], size: int
) -> list[tuple[float, float]]:
    """Where each word stands in lines inside ``box``; fewer where not all fit."""
    font, (left, y, right, bottom) = ImageFont.load_default(size), box
    places, x = [], float(left)
    for word in words:
        width = _BLOCK * size if _is_block(word) else font.getlength(word.text)
        if x > left and x + width > right:
            x, y = left, y + _LINE * size
        if y + _LINE * size > bottom:
            break
        places.append((x, y))
        x += width + 0.3 * size
    return places


def _write(
    draw: ImageDraw.ImageDraw, words: Sequence[Word], places: list[tuple[float, float]], size: int
) -> None:
    """The words that have a place, the new ones on a coloured ground."""
    font = ImageFont.load_default(size)
    for number, ((x, y), word) in enumerate(zip(places, words, strict=False), start=1):
        cut = number == len(places) < len(words)
        text = "…" if cut else word.text.replace(MASKED_TEXT, MASK_SIGN)
        if word.new and not word.masked and not cut:
            right = x + font.getlength(text)
            draw.rounded_rectangle((x - 2, y - 1, right + 2, y + 1.25 * size), 3, fill=_NEW)
        if _is_block(word) and not cut:
            corners = (x, y + 0.3 * size, x + _BLOCK * size, y + 1.05 * size)
            draw.rounded_rectangle(corners, 0.15 * size, fill=_FAINT)
        else:
            draw.text((x, y), text, fill=_FAINT if word.masked else _INK, font=font)


def contact_sheet(frames: Sequence[Image.Image], columns: int) -> Image.Image:
    """Frames of one size in rows of ``columns``, on white."""
    width, height = frames[0].size
    columns = min(columns, len(frames))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(frames) / columns) * height), _PAPER)
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        sheet.paste(frame, (column * width, row * height))
    return sheet


def stacked(pictures: Sequence[Image.Image]) -> Image.Image | None:
    """Pictures below each other on white, or ``None`` of none."""
    if not pictures:
        return None
    width = max(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, sum(picture.height for picture in pictures)), _PAPER)
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole

"""Pictures of a trajectory: text beside image at chosen steps, as frames or one contact sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..mmp_core.checkpoint.load import Model
from ..mmp_core.editing import text_pieces
from ..mmp_core.pipeline import decode_image, undecided_pixels
from ..mmp_core.state import MASKED, Step, TokenState, Trajectory
from ..mmp_core.variants.base import UNDECIDED

SHOWN = "·"
"""What is drawn for an undecided token: the default font lacks ░."""
_PAPER, _INK, _FAINT, _NEW = "#ffffff", "#1c1c1e", "#b4b4bc", "#ffe28a"
_LINE, _SMALLEST = 1.45, 8
_VEIL, _VEIL_STRENGTH = "#808080", 0.6
_HEAT = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])
_HEAT_STRENGTH = 0.65


@dataclass(frozen=True)
class Word:
    """``decided`` and ``new`` (decided since the frame before) say how a word is drawn."""

    text: str
    decided: bool = True
    new: bool = False


def spread_steps(trajectory: Trajectory, count: int) -> list[Step]:
    """``count`` recorded steps, evenly spread and the run's end always; all if there are fewer."""
    steps = trajectory.steps
    if len(steps) > count:
        steps = [steps[(i + 1) * len(steps) // count - 1] for i in range(count)]
    return [*steps[:-1], trajectory.end]


def trajectory_frames(
    model: Model,
    trajectory: Trajectory,
    steps: Iterable[Step],
    *,
    sample: int = 0,
    side: int = 256,
    heat: bool = False,
) -> list[Image.Image]:
    """One frame per step, all of one size: the picture, and the text beside it.

    The picture is the model's guess, veiled where it is undecided; with ``heat`` under a map of the
    confidence in each patch (dark: 0, yellow: 1). Words decided since the frame before are marked.
    ``side``: height of the picture in pixels. ``sample``: of the batch.
    """
    frames, before = [], None
    for step in steps:
        own = slice(sample, sample + 1)
        picture = _picture(model, step, own, side, heat)
        after = step.after[own]
        words = words_of(model, after, before)
        done = f"step {step.index + 1} of {trajectory.total_steps}"
        frames.append(beside(picture, words, done))
        before = after
    return frames


def _picture(model: Model, step: Step, own: slice, side: int, heat: bool) -> Image.Image:
    if heat:
        picture = decode_image(model, step.guess[own])[0]
        picture = heated(picture, step.image_confidence[own][0])
    else:
        picture = veiled_picture(model, step.guess[own], step.after[own])
    return picture.resize((round(side * picture.width / picture.height), side))


def veiled_picture(model: Model, guess: TokenState, decided: TokenState) -> Image.Image:
    """The model's guess, under a grey veil where it is not decided. Batches of one."""
    picture = decode_image(model, guess)[0]
    veil = Image.new("RGB", picture.size, _VEIL)
    undecided = Image.fromarray(undecided_pixels(model, decided)[0].numpy())
    return Image.composite(Image.blend(picture, veil, _VEIL_STRENGTH), picture, undecided)


def heated(picture: Image.Image, confidence: torch.Tensor) -> Image.Image:
    """``picture`` under a map of ``confidence`` (H, W), 0 … 1: dark violet to yellow."""
    place = confidence.float().cpu().clamp(0, 1).numpy() * (len(_HEAT) - 1)
    levels = [np.interp(place, range(len(_HEAT)), channel) for channel in _HEAT.T]
    colours = Image.fromarray(np.stack(levels, axis=-1).round().astype(np.uint8))
    colours = colours.resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture, colours, _HEAT_STRENGTH)


def words_of(model: Model, state: TokenState, before: TokenState | None = None) -> list[Word]:
    """The words of a batch of one; new are those that ``before`` has not decided."""
    ids = state.text[0].tolist()
    earlier = [MASKED] * len(ids) if before is None else before.text[0].tolist()
    words: list[Word] = []
    for piece, now, then in zip(text_pieces(model, state)[0], ids, earlier, strict=True):
        word = Word(piece.strip(), now != MASKED, before is not None and now != then)
        if piece[:1].isspace() or not words:
            words.append(word)
        elif piece:
            last = words[-1]
            joined = last.text + piece.strip()
            words[-1] = Word(joined, last.decided and word.decided, last.new or word.new)
    return [word for word in words if word.text]


def beside(picture: Image.Image, words: Sequence[Word], title: str) -> Image.Image:
    """``picture`` left, ``words`` right of it, wrapped to the picture's width; a long text is set
    smaller, and what still does not fit is left out with an ellipsis. Sides are even: for video."""
    margin, size = max(8, picture.height // 24), max(12, picture.height // 15)
    sides = (2 * picture.width + 3 * margin, picture.height + 2 * margin)
    frame = Image.new("RGB", tuple(side + side % 2 for side in sides), _PAPER)
    frame.paste(picture, (margin, margin))
    draw = ImageDraw.Draw(frame)
    left = picture.width + 2 * margin
    small = ImageFont.load_default(0.8 * size)
    draw.text((left, margin), title, fill=_FAINT, font=small)
    box = (left, margin + 2 * size, frame.width - margin, frame.height - margin)
    for smaller in range(size, _SMALLEST - 1, -1):
        places = _placed(words, box, smaller)
        if len(places) == len(words) or smaller == _SMALLEST:
            _write(draw, words, places, smaller)
            break
    return frame


def _placed(
    words: Sequence[Word], box: tuple[int, int, int, int], size: int
) -> list[tuple[float, float]]:
    """Where each word stands in lines inside ``box``; fewer where not all fit."""
    font, (left, y, right, bottom) = ImageFont.load_default(size), box
    places, x = [], float(left)
    for word in words:
        width = font.getlength(word.text)
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
        text = "…" if cut else word.text.replace(UNDECIDED, SHOWN)
        if word.new and word.decided and not cut:
            right = x + font.getlength(text)
            draw.rounded_rectangle((x - 2, y - 1, right + 2, y + 1.25 * size), 3, fill=_NEW)
        draw.text((x, y), text, fill=_INK if word.decided else _FAINT, font=font)


def contact_sheet(frames: Sequence[Image.Image], columns: int) -> Image.Image:
    """Frames of one size in rows of ``columns``, on white."""
    width, height = frames[0].size
    columns = min(columns, len(frames))
    sheet = Image.new("RGB", (columns * width, -(-len(frames) // columns) * height), _PAPER)
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        sheet.paste(frame, (column * width, row * height))
    return sheet

"""Sheets of examples: what a dataset holds, and what a model in training answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .sheet import Word, beside, contact_sheet, lines_in, stacked

_PAPER, _EMPTY, _FAINT = "#ffffff", "#f0f0f2", "#8e8e96"
_GAP = 12
SIDE = 128
"""Height of each picture of an answer, in pixels, by default."""


class Example(NamedTuple):
    """One item of a dataset. ``image``: what is edited, ``None`` to generate."""

    name: str
    instruction: str
    reasoning: str | None
    image: Image.Image | None
    target: Image.Image | None


def dataset_sheet(examples: Sequence[Example], *, columns: int = 2, side: int = 192) -> Image.Image:
    """One frame per example: its picture and, where any example has one, its target, beside the
    instruction and, fainter, the reasoning. ``side``: of each picture in pixels.
    """
    with_targets = any(example.target is not None for example in examples)
    return contact_sheet([_frame(example, side, with_targets) for example in examples], columns)


def _frame(example: Example, side: int, with_targets: bool) -> Image.Image:
    pictures = [_square(example.image, side, "to generate")]
    if with_targets:
        pictures.append(_square(example.target, side, "no target"))
    pitch = side + side // _GAP
    strip = Image.new("RGB", (pitch * (len(pictures) - 1) + side, side), _PAPER)
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * pitch, 0))
    words = [Word(word) for word in example.instruction.split()]
    words += [Word(word, masked=True) for word in (example.reasoning or "").split()]
    return beside(strip, words, example.name)


def _square(picture: Image.Image | None, side: int, otherwise: str) -> Image.Image:
    """The whole of ``picture``, or the words ``otherwise``."""
    if picture is not None:
        return ImageOps.pad(picture, (side, side), color=_PAPER)
    square = Image.new("RGB", (side, side), _EMPTY)
    font = ImageFont.load_default(side // 12)
    middle = side / 2, side / 2
    ImageDraw.Draw(square).text(middle, otherwise, fill=_FAINT, font=font, anchor="mm")
    return square


class Answer(NamedTuple):
    """What a model answers to ``instruction``. ``source``: what was to be edited, if anything."""

    instruction: str
    text: str
    picture: Image.Image
    source: Image.Image | None = None


def answers_sheet(answers: Iterable[Answer], *, columns: int = 2, side: int = SIDE) -> Image.Image:
    """One frame per answer: the whole instruction over the source, if there is one, the picture and
    the text. ``side``: height of each picture in pixels."""
    frames = [_answer_frame(answer, side) for answer in answers]
    widest = max(frame.width for frame in frames)
    padded = [ImageOps.pad(f, (widest, f.height), color=_PAPER, centering=(0, 0)) for f in frames]
    return contact_sheet(padded, columns)


def voting_sheet(groups: Sequence[Sequence[Answer]], *, side: int = SIDE) -> Image.Image | None:
    """The answers of each group below those of the one before, four in a row, under their numbers
    from 1: 2.3 is the third of the second group. ``None`` of none."""
    sheets = []
    for number, answers in enumerate(groups, start=1):
        numbered = [
            answer._replace(instruction=f"{number}.{place}  {answer.instruction}")
            for place, answer in enumerate(answers, start=1)
        ]
        sheets.append(answers_sheet(numbered, columns=4, side=side))
    return stacked(sheets)


def _answer_frame(answer: Answer, side: int) -> Image.Image:
    shown = [picture for picture in (answer.source, answer.picture) if picture]
    resized = [p.resize((max(1, round(side * p.width / p.height)), side)) for p in shown]
    gap, head = side // _GAP, side // 3
    strip = Image.new("RGB", (sum(p.width + gap for p in resized) - gap, side), _PAPER)
    left = 0
    for picture in resized:
        strip.paste(picture, (left, 0))
        left += picture.width + gap
    below = beside(strip, [Word(word) for word in answer.text.split()], "")
    frame = Image.new("RGB", (below.width, head + below.height), _PAPER)
    frame.paste(below, (0, head))
    words = [Word(word) for word in answer.instruction.split()]
    lines_in(ImageDraw.Draw(frame), words, (gap, gap, frame.width - gap, head), side // 10)
    return frame

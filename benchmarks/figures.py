"""Panels of real runs, which the scripts that draw figures and thumbnails share."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.picture_book import tasks as book
from mmada_parallel.demo.tasks import Task
from mmada_parallel.demo.world import task as task_numbered
from mmada_parallel.mmp_core import (
    Prompt,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
)
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.views.sheet import MASK_SIGN
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
_SIDE, _MARGIN, _TEXT = 224, 16, 88
_VEIL = (0.86, 0.86, 0.88)


def held_out_task(kind: str, number: int) -> Task:
    return task_numbered(HELD_OUT + number, kinds=(kind,))


def page(kind: str, number: int) -> book.Task:
    """Of the picture book, as *Demo Scene* numbers them."""
    return book.task(number, held_out=True, kinds=(kind,))


def panel(picture: Image.Image | None, title: str, words: str) -> Image.Image:
    """One column: title, picture, words below it."""
    image = Image.new("RGB", (_SIDE, _SIDE + _TEXT + 24), "white")
    draw = ImageDraw.Draw(image)
    draw.text((0, 2), title, fill="#666666", font=ImageFont.load_default(14))
    if picture is not None:
        shown = picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        image.paste(shown, (0, 24))
    lines = textwrap.wrap(words, 30)
    draw.multiline_text(
        (0, _SIDE + 32), "\n".join(lines), fill="black", font=ImageFont.load_default(14)
    )
    return image


def side_by_side(panels: list[Image.Image]) -> Image.Image:
    width = sum(p.width + _MARGIN for p in panels) + _MARGIN
    sheet = Image.new("RGB", (width, panels[0].height + 2 * _MARGIN), "white")
    for i, one in enumerate(panels):
        sheet.paste(one, (_MARGIN + i * (_SIDE + _MARGIN), _MARGIN))
    return sheet


def state_panel(model: Model, title: str, state: TokenState) -> Image.Image:
    words = decode_text(model, state, masked=f" {MASK_SIGN}")[0]
    return panel(decode_image(model, state, fill=_VEIL)[0], title, words)


def result_panel(model: Model, prompt: Prompt, title: str, **settings: Any) -> Image.Image:
    final = denoise(model, prompt, SamplerSettings(**settings), record=0).final
    return panel(decode_image(model, final)[0], title, decode_text(model, final)[0])

"""What a model in training answered to the same instructions over time, as one picture."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..mmp_core.errors import InputError
from ..mmp_core.image.files import load_image
from ..mmp_core.outside import read_text
from .sheet import Word, lines_in

_PAPER, _FAINT = "#ffffff", "#8e8e96"
_MOST_TEXT = 1000
"""Characters, of which a few dozen have room below a picture."""


def samples_strip(
    run: Path, *, side: int = 128, rows: int | None = None, columns: int = 12
) -> Image.Image:
    """A row per instruction and a column per step of the samples in the folder of a run, the first
    and the newest among them; each picture over the beginning of its text.

    ``run``: has ``samples/step-NUMBER/1.png`` and ``1.txt``, and so on. ``side``: of each picture
    in pixels. ``rows``, ``columns``: the most of these. A step that lacks a sample has a gap.
    Raises ``ValueError`` where there are no steps.
    """
    steps = sorted(
        (int(match[1]), folder)
        for folder in (run / "samples").glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", folder.name))
    )
    if not steps:
        raise ValueError(f"There are no samples in {run}.")
    count = min(len(steps), columns)
    shown = [steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)]
    names = sorted(
        (file.stem for file in shown[-1][1].glob("*.png") if file.stem.isdecimal()), key=int
    )[:rows]
    margin, head, words = side // 16, side // 6, side // 2
    pitch = side + margin
    size = (len(shown) * pitch + margin, head + len(names) * (side + words) + margin)
    strip = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(side // 10)
    for column, (step, folder) in enumerate(shown):
        left = margin + column * pitch
        title = f"step {step}" if step else "before"
        draw.text((left, margin), title, fill=_FAINT, font=font)
        for row, name in enumerate(names):
            top = head + margin + row * (side + words)
            file, words_file = folder / f"{name}.png", folder / f"{name}.txt"
            if file.is_file():
                picture = ImageOps.pad(load_image(file), (side, side), color=_PAPER)
                strip.paste(picture, (left, top))
            text = []
            if words_file.is_file():
                text = read_text(words_file, error=InputError)[:_MOST_TEXT].split()
            box = (left, top + side, left + side, top + side + words - margin)
            lines_in(draw, [Word(word) for word in text], box, side // 11)
    return strip

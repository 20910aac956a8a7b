"""Pictures of real runs for the README and the workflows' thumbnails.

``python -m mmada_parallel.demo.figure`` writes ``docs/edit.png`` and ``workflows/*.jpg``.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..mmp_core import (
    TokenState,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from ..mmp_core.checkpoint import Model
from . import world
from .dataset import HELD_OUT
from .render import render

ROOT = Path(__file__).parents[1]
_SIDE, _MARGIN, _TEXT = 224, 16, 76
_UNDECIDED = "·"
_VEIL = (0.86, 0.86, 0.88)


def held_out_task(kind: str, number: int) -> world.Task:
    return world.task(HELD_OUT + number, kinds=(kind,))


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


def run_panels(model: Model, task: world.Task, moments: tuple[float, ...]) -> list[Image.Image]:
    """The input with its instruction, the half-denoised pairs at ``moments``, and the result."""
    before = None if task.before is None else render(task.before)
    trajectory = denoise(model, encode_instruction(model, task.instruction, before))
    shown = [trajectory.steps[round(m * (len(trajectory) - 1))].after for m in moments]

    def column(title: str, state: TokenState) -> Image.Image:
        words = decode_text(model, state, masked=_UNDECIDED)[0]
        return panel(decode_image(model, state, fill=_VEIL)[0], title, words)

    first = panel(before, "input" if before else "instruction", f"“{task.instruction}”")
    steps = [column(f"{m:.0%} denoised", s) for m, s in zip(moments, shown, strict=True)]
    return [first, *steps, column("result", trajectory.final)]


def main() -> None:
    model = load_checkpoint("demo")
    edit, draw = held_out_task("recolour", 18), held_out_task("generate", 1)
    (ROOT / "docs").mkdir(exist_ok=True)
    side_by_side(run_panels(model, edit, (0.35, 0.65))).save(ROOT / "docs" / "edit.png")
    for name, task in (("Edit an image", edit), ("Generate with thinking", draw)):
        sheet = side_by_side(run_panels(model, task, (0.6,)))
        sheet.save(ROOT / "workflows" / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main()

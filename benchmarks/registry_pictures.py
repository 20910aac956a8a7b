"""The pictures of the pack in the Comfy registry, from a run of the demo model.

``python -m mmada_parallel.benchmarks.registry_pictures`` writes ``docs/icon.png`` (at most
400x400) and ``docs/banner.png`` (21:9).
"""

from __future__ import annotations

from mmada_parallel.benchmarks.figures import ROOT, held_out_task
from mmada_parallel.demo.evaluate import prompt_of
from mmada_parallel.demo.render import render
from mmada_parallel.mmp_core import decode_image, denoise, load_checkpoint
from PIL import Image, ImageDraw, ImageFont

_ICON, _BANNER = 256, (1260, 540)
_PAPER, _INK, _FAINT, _VEIL = "#f4f4f1", "#1c1c1e", "#77777c", (0.80, 0.78, 0.92)


def moments(shares: tuple[float, ...]) -> tuple[str, list[Image.Image]]:
    """An edit's instruction, and its picture before, at ``shares`` of the run, and after."""
    model, task = load_checkpoint("demo"), held_out_task("recolour", 2)
    assert task.before is not None
    run = denoise(model, prompt_of(model, task))
    states = [run.at(share).after for share in shares] + [run.final]
    pictures = [decode_image(model, state, fill=_VEIL)[0] for state in states]
    return task.instruction, [render(task.before), *pictures]


def icon(half: Image.Image) -> Image.Image:
    return half.resize((_ICON, _ICON), Image.Resampling.LANCZOS)


def banner(instruction: str, pictures: list[Image.Image]) -> Image.Image:
    image = Image.new("RGB", _BANNER, _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((60, 44), "MMaDA-Parallel", fill=_INK, font=ImageFont.load_default(64))
    line = "The text and the picture of an edit, denoised in parallel"
    draw.text((62, 122), line, fill=_FAINT, font=ImageFont.load_default(28))
    side, gap = 264, 28
    for i, picture in enumerate(pictures):
        place = (60 + i * (side + gap), 186)
        image.paste(picture.resize((side, side), Image.Resampling.LANCZOS), place)
    draw.text((60, 470), f"“{instruction}”", fill=_INK, font=ImageFont.load_default(28))
    return image


def main() -> None:
    instruction, pictures = moments((0.35, 0.65))
    for name, picture in (("icon", icon(pictures[2])), ("banner", banner(instruction, pictures))):
        few = picture.quantize(128, dither=Image.Dither.NONE)
        few.save(ROOT / "docs" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

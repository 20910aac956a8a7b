"""The workflows' thumbnails, of real runs, to be read at 160 pixels.

``python -m mmada_parallel.benchmarks.thumbnails [NAME …]`` writes ``workflows/*.jpg``, or those of
these names; those of training are made by ``benchmarks/figures_training.py``.
"""

from __future__ import annotations

import functools
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from mmada_parallel.benchmarks.figures import ROOT, held_out_task, page
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.evaluate import prompt_of, with_text
from mmada_parallel.demo.kinds import EDITS
from mmada_parallel.demo.photo import on_a_wall, on_paper
from mmada_parallel.demo.picture_book.edits import EDITS as PAGE_EDITS
from mmada_parallel.demo.picture_book.scenes import COLOURS
from mmada_parallel.demo.picture_book.tasks import task as page_numbered
from mmada_parallel.demo.render import render
from mmada_parallel.demo.world import task as task_numbered
from mmada_parallel.demo.worlds import AnyTask
from mmada_parallel.mmp_core import (
    Prompt,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
    put_back,
)
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.mmp_core.editing import extended, pattern_selected, reopened, text_pieces
from mmada_parallel.mmp_core.fitting import fitted_input
from mmada_parallel.mmp_core.image.mask_settings import MaskSettings
from mmada_parallel.mmp_core.image.put_back_settings import PutBackSettings
from mmada_parallel.mmp_core.variation import confidence_in, varied
from mmada_parallel.training.rewards.clip import DEMO_CLIP, ClipScorer
from mmada_parallel.views.mask_overlay import prompt_overlays
from mmada_parallel.views.sheet import MASK_SIGN, Word, lines_in
from mmada_parallel.views.trajectory import spread_steps
from PIL import Image, ImageDraw, ImageOps

_SIDE, _MARGIN, _LETTERS, _LONGEST_TEXT = 480, 10, 34, 90
_VEIL = (0.86, 0.86, 0.88)
_REPLACE = PutBackSettings(fill="replace")


class Panel(NamedTuple):
    picture: Image.Image | None
    words: str = ""


def square(panels: list[Panel], words: str | None = None, columns: int = 2) -> Image.Image:
    """A thumbnail that can be read at 160 pixels: the first and the last picture, or of one column
    the last alone, or of four panels all; below them ``words``, by default those of the first."""
    sheet = Image.new("RGB", (_SIDE, _SIDE), "white")
    shown = [panel.picture for panel in panels if panel.picture is not None]
    rows = 1 if len(shown) < 4 else 2
    if rows == 1:
        shown = [shown[0], shown[-1]] if columns == 2 and len(shown) > 1 else shown[-1:]
    side = (_SIDE - 3 * _MARGIN) // 2 if rows == 1 else 165
    if len(shown) == 1:
        side = 300
    gap = (_SIDE - side * min(2, len(shown))) // (min(2, len(shown)) + 1)
    for number, picture in enumerate(shown):
        row, column = divmod(number, 2)
        fitted = ImageOps.contain(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
        place = gap + column * (side + gap), _MARGIN + row * (side + _MARGIN)
        sheet.paste(fitted, (place[0], place[1] + (side - fitted.height) // 2))
    top = rows * (side + _MARGIN) + _MARGIN
    text = panels[0].words if words is None else words
    text = textwrap.shorten(text, _LONGEST_TEXT, placeholder=" …")
    marked = [Word(word, masked=MASK_SIGN in word) for word in text.split()]
    box = (_MARGIN, top, _SIDE - _MARGIN, _SIDE)
    lines_in(ImageDraw.Draw(sheet), marked, box, _LETTERS)
    return sheet


def state_panel(model: Model, state: TokenState) -> Panel:
    words = decode_text(model, state, masked=f" {MASK_SIGN}")[0]
    picture = decode_image(model, state, fill=_VEIL)[0] if min(state.grid) else None
    return Panel(picture, words)


def run_panels(model: Model, task: AnyTask[Any], moments: tuple[float, ...]) -> list[Panel]:
    """The input with its instruction, the half-denoised pairs at ``moments``, and the result."""
    before = None if task.before is None else task.before.picture()
    trajectory = denoise(model, prompt_of(model, task))
    shown = [trajectory.steps[round(m * (len(trajectory) - 1))].after for m in moments]
    states = [state_panel(model, state) for state in (*shown, trajectory.final)]
    return [Panel(before, f"“{task.instruction}”"), *states]


def result_panel(model: Model, prompt: Prompt, **settings: Any) -> Panel:
    final = denoise(model, prompt, SamplerSettings(**settings), record=0).final
    return Panel(decode_image(model, final)[0], decode_text(model, final)[0])


def watch_it_think(model: Model) -> Image.Image:
    run = denoise(model, prompt_of(model, page("replace", 3)))
    panels = [state_panel(model, step.after) for step in spread_steps(run, 4)]
    return square(panels, panels[2].words)


def inpaint(model: Model) -> Image.Image:
    task, mask = page("replace", 5), Image.new("L", (256, 256))
    mask.paste(255, (64, 128, 128, 224))
    before, prompt = task.source.picture(), prompt_of(model, task, mask=mask)
    (overlay,) = prompt_overlays(prompt, [before], [mask])
    final = denoise(model, prompt, record=0).final
    after, _ = put_back(model, prompt, before, final, mask=mask, mode="mask", settings=_REPLACE)
    return square([Panel(overlay, f"“{task.instruction}”"), Panel(after)])


def edit_large(model: Model) -> Image.Image:
    task = task_numbered(HELD_OUT + 12, kinds=EDITS)
    before = on_paper(task.source)
    prompt = encode_instruction(model, task.instruction, before)
    final = denoise(model, prompt, SamplerSettings(seed=0), record=0).final
    after, _ = put_back(model, prompt, before, final, settings=_REPLACE)
    return square([Panel(before, f"“{task.instruction}”"), Panel(after)])


def inpaint_large(model: Model) -> Image.Image:
    """The part around the mask, and the whole photo after."""
    tasks = [task_numbered(HELD_OUT + 6, kinds=("replace",))]
    tasks += [task_numbered(HELD_OUT + number, kinds=EDITS) for number in (7, 8)]
    before = on_a_wall(tasks[0].source, [task.source for task in tasks[1:]])
    mask = Image.new("L", before.size)
    mask.paste(255, (704, 384, 832, 512))
    settings = MaskSettings(region="mask")
    fitted = fitted_input(model, (0, 0), before.size, [mask], settings=settings)
    prompt = encode_instruction(
        model, tasks[0].instruction, before, mask=mask, region=fitted.regions[0]
    )
    (overlay,) = prompt_overlays(prompt, [before], [mask])
    final = denoise(model, prompt, SamplerSettings(seed=0), record=0).final
    after, _ = put_back(model, prompt, before, final, mask=mask, mode="mask", settings=_REPLACE)
    return square([Panel(overlay, f"“{tasks[0].instruction}”"), Panel(after)])


def outpaint(model: Model) -> Image.Image:
    task = replace(held_out_task("add", 1), instruction="add a yellow star at row 2 column 5")
    wider = extended(prompt_of(model, task), left=0, top=0, right=1, bottom=0)
    final = denoise(model, wider).final
    whole, _ = put_back(model, wider, render(task.source), final, mode="mask", settings=_REPLACE)
    return square([Panel(render(task.source), f"“{task.instruction}”"), Panel(whole)])


def fix_the_plan(model: Model) -> Image.Image:
    prompt = prompt_of(model, held_out_task("recolour", 3))
    plan = "the red circle at row 1 column 4 becomes a green star ."
    planned = with_text(model, prompt.without_instruction(), plan)
    return square([result_panel(model, prompt), result_panel(model, planned)], f"“{plan}”")


def explain(model: Model) -> Image.Image:
    task = page("replace", 1)
    prompt = prompt_of(model, task)
    after = denoise(model, prompt, record=0).final
    with_picture = prompt.starting_from(TokenState(prompt.initial.text, after.image))
    explained = denoise(model, with_picture, record=0).final
    words = decode_text(model, explained)[0]
    given = [Panel(task.source.picture()), Panel(decode_image(model, after)[0])]
    return square(given, f"… {words.partition('. ')[2]}")


def stop_keep_and_redraw(model: Model) -> Image.Image:
    prompt = prompt_of(model, page("recolour", 9))
    half = denoise(model, prompt).at(0.9).after
    colours = pattern_selected(text_pieces(model, half)[0], "|".join(COLOURS))
    cells = torch.zeros(1, *half.grid, dtype=torch.bool)
    cells[:, :3, :2] = True
    kept = reopened(half, text=torch.tensor([colours]), image=cells)

    final = denoise(model, prompt.starting_from(kept), SamplerSettings(seed=7), record=0).final
    panels = [state_panel(model, kept), state_panel(model, final)]
    return square(panels, f"… {panels[0].words.partition('. ')[2]}")


def orders(model: Model) -> Image.Image:
    prompt, panels = prompt_of(model, held_out_task("move", 5)), []
    quick: dict[str, Any] = {"text_steps": 4, "image_steps": 4, "text_temperature": 1.5}
    for order in ("parallel", "text_first"):
        settings = SamplerSettings(order=order, **quick)
        panels.append(state_panel(model, denoise(model, prompt, settings).final))
    return square(panels, "left in parallel, right text first")


def best_of_n(model: Model) -> Image.Image:
    task = held_out_task("count", 8)
    settings = SamplerSettings(text_steps=4, image_steps=2, text_temperature=1.0)
    final = denoise(model, prompt_of(model, task, batch=4), settings, record=0).final
    pictures, texts = decode_image(model, final), decode_text(model, final)
    scores = ClipScorer(DEMO_CLIP).score(texts, pictures)
    best = int(scores.argmax())
    pictures[best] = ImageOps.expand(pictures[best], 5, "#2a9d3a")
    return square([Panel(picture) for picture in pictures], f"best of 4: {texts[best]}")


def vary_a_result(model: Model) -> Image.Image:
    prompt = encode_instruction(model, "draw a star on white")
    steps: dict[str, Any] = {"text_steps": 8, "image_steps": 8, "order": "text_first"}
    chosen = SamplerSettings(text_temperature=1.0, joint_guidance=0.0, **steps)
    run = denoise(model, prompt, replace(chosen, seed=1))
    opened = varied(
        run.final,
        confidence_in(run),
        text=0.2,
        image=1.0,
        end_of_text=model.layout.end_of_text,
    )
    again = prompt.starting_from(opened).repeat(4)
    final = denoise(model, again, replace(chosen, seed=7), record=0).final
    pictures = decode_image(model, run.final) + decode_image(model, final)
    pictures[0] = ImageOps.expand(pictures[0], 5, "#2a9d3a")
    return square([Panel(picture) for picture in pictures[:4]], "one result, varied three times")


def several_instructions(model: Model) -> Image.Image:
    picture = page("recolour", 6).source.picture()
    lines = (
        "paint the cat the colour of strawberries",
        "take the kite away",
        "turn the cat into a yellow boat",
    )
    panels = [Panel(picture)]
    panels += [result_panel(model, encode_instruction(model, line, picture)) for line in lines]
    return square(panels, "one picture, three instructions")


def of_one_kind(model: Model, instruction: str, *scenes: int, **options: Any) -> Image.Image:
    """An answer with a picture or with a text, as the workflow of this ``instruction`` gives it.
    ``scenes``: seeds of *Demo Scene*."""
    pictures = [render(task_numbered(HELD_OUT + n, kinds=EDITS).source) for n in scenes]
    image, reference = (*pictures, None, None)[:2]
    own = {"text_steps": 16, "block_length": 16, "joint_guidance": 0.0, "image_temperature": 0.0}
    prompt = encode_instruction(model, instruction, image, reference=reference, **options)
    final = denoise(model, prompt, SamplerSettings(**own), record=0).final
    answer = state_panel(model, final)
    words = answer.words.strip() or (
        f"“{instruction}”" if instruction else "the background of a second picture"
    )
    panels = [Panel(picture) for picture in (image, reference) if picture is not None]
    return square([*panels, answer] if answer.picture else panels, words)


def describe(model: Model) -> Image.Image:
    return of_one_kind(model, "describe the picture", 3, task="describe")


def styled(model: Model) -> Image.Image:
    return of_one_kind(model, "", 3, 4)


def at_any_size(model: Model) -> Image.Image:
    words = "draw a yellow star at row 2 column 3 on blue"
    return of_one_kind(model, words, size=(160, 128))


def edited(model: Model) -> Image.Image:
    return square(run_panels(model, page("recolour", 6), ()))


def at_night(model: Model) -> Image.Image:
    instruction = "now it is night"
    before = page_numbered(6, held_out=True, kinds=tuple(PAGE_EDITS)).source.picture()
    prompt = encode_instruction(model, instruction, before)
    final = denoise(model, prompt, record=0).final
    return square([Panel(before, f"“{instruction}”"), Panel(decode_image(model, final)[0])])


def generated(model: Model) -> Image.Image:
    return square(run_panels(model, page("draw", 7), (0.6,)))


Drawn = Callable[[Model], Image.Image]

THUMBNAILS: dict[str, tuple[str, Drawn]] = {
    "Edit an image": ("picture-book", edited),
    "Edit a page of the picture book": ("picture-book", at_night),
    "Generate with thinking": ("picture-book", generated),
    "Watch it think": ("picture-book", watch_it_think),
    "Inpaint": ("picture-book", inpaint),
    "Outpaint": ("demo", outpaint),
    "Edit a large photo": ("demo", edit_large),
    "Inpaint part of a large photo": ("demo", inpaint_large),
    "Fix the plan and redraw": ("demo", fix_the_plan),
    "Explain this edit": ("picture-book", explain),
    "Stop, keep and redraw": ("picture-book", stop_keep_and_redraw),
    "Parallel against sequential": ("demo", orders),
    "Best of N": ("demo", best_of_n),
    "Vary a result": ("demo", vary_a_result),
    "Several instructions": ("picture-book", several_instructions),
    "Describe a picture": ("demo-lumina", describe),
    "Text to image at any size": ("demo-lumina", at_any_size),
    "Style from a second picture": ("demo-lumina", styled),
}
"""Each with the checkpoint that its workflow loads."""


def main() -> None:
    load = functools.cache(load_checkpoint)
    for name in sys.argv[1:] or THUMBNAILS:
        checkpoint, draw = THUMBNAILS[name]
        sheet = draw(load(checkpoint))
        sheet.save(ROOT / "workflows" / f"{name}.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    main()

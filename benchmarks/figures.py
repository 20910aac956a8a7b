"""Pictures of real runs for the workflows' thumbnails.

``python -m mmada_parallel.benchmarks.figures`` writes ``workflows/*.jpg``.
"""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.evaluate import prompt_of, with_text
from mmada_parallel.demo.kinds import EDITS
from mmada_parallel.demo.photo import on_a_wall, on_paper
from mmada_parallel.demo.render import render
from mmada_parallel.demo.scenes import COLOURS
from mmada_parallel.demo.tasks import Task
from mmada_parallel.demo.world import task as task_numbered
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
from mmada_parallel.training.rewards.clip import DEMO_CLIP, ClipScorer
from mmada_parallel.views.mask_overlay import prompt_overlays
from mmada_parallel.views.sheet import MASK_SIGN, Word, beside, contact_sheet
from mmada_parallel.views.trajectory import spread_steps, trajectory_frames
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
_SIDE, _MARGIN, _TEXT = 224, 16, 76
_VEIL = (0.86, 0.86, 0.88)


def held_out_task(kind: str, number: int) -> Task:
    return task_numbered(HELD_OUT + number, kinds=(kind,))


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


def run_panels(model: Model, task: Task, moments: tuple[float, ...]) -> list[Image.Image]:
    """The input with its instruction, the half-denoised pairs at ``moments``, and the result."""
    before = None if task.before is None else render(task.before)
    trajectory = denoise(model, prompt_of(model, task))
    shown = [trajectory.steps[round(m * (len(trajectory) - 1))].after for m in moments]

    first = panel(before, "input" if before else "instruction", f"“{task.instruction}”")
    titles = [f"{moment:.0%} denoised" for moment in moments]
    steps = [state_panel(model, t, s) for t, s in zip(titles, shown, strict=True)]
    return [first, *steps, state_panel(model, "result", trajectory.final)]


def result_panel(model: Model, prompt: Prompt, title: str, **settings: Any) -> Image.Image:
    final = denoise(model, prompt, SamplerSettings(**settings), record=0).final
    return panel(decode_image(model, final)[0], title, decode_text(model, final)[0])


def watch_it_think(model: Model) -> Image.Image:
    run = denoise(model, prompt_of(model, held_out_task("recolour", 2)))
    return contact_sheet(trajectory_frames(model, run, spread_steps(run, 4)), 2)


def inpaint(model: Model) -> Image.Image:
    task, mask = held_out_task("replace", 5), Image.new("L", (128, 128))
    mask.paste(255, (96, 32, 128, 64))
    before, prompt = render(task.source), prompt_of(model, task, mask=mask)
    (overlay,) = prompt_overlays(prompt, [before], [mask])
    final = denoise(model, prompt, record=0).final
    after, _ = put_back(model, prompt, before, final, mask=mask, mode="mask")
    return side_by_side(
        [
            panel(before, "input", f"“{task.instruction}”"),
            panel(overlay, "mask, and what it selects", ""),
            panel(after, "put back", decode_text(model, final)[0]),
        ]
    )


def edit_large(model: Model) -> Image.Image:
    task = task_numbered(HELD_OUT + 12, kinds=EDITS)
    before = on_paper(task.source)
    prompt = encode_instruction(model, task.instruction, before)
    final = denoise(model, prompt, SamplerSettings(seed=0), record=0).final
    after, mask = put_back(model, prompt, before, final)
    return side_by_side(
        [
            panel(before, "1024x1024", f"“{task.instruction}”"),
            panel(
                decode_image(model, final)[0], "the model's 128x128", decode_text(model, final)[0]
            ),
            panel(mask.convert("RGB"), "what changed", ""),
            panel(after, "put back, 1024x1024", "The paper is the original's."),
        ]
    )


def inpaint_large(model: Model) -> Image.Image:
    """The photo before and after above, the part that the model got below."""
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
    after, _ = put_back(model, prompt, before, final, mask=mask, mode="mask")
    size = 2 * _SIDE, 2 * _SIDE * before.height // before.width
    texts = f"“{tasks[0].instruction}”", decode_text(model, final)[0]
    panels = [
        panel(overlay, "what the model gets", texts[0]),
        panel(decode_image(model, final)[0], "what it draws", texts[1]),
    ]
    height = size[1] + panels[0].height + 3 * _MARGIN
    sheet = Image.new("RGB", (2 * size[0] + 3 * _MARGIN, height), "white")
    for i, (photo, one) in enumerate(zip((before, after), panels, strict=True)):
        left = _MARGIN + i * (size[0] + _MARGIN)
        sheet.paste(photo.resize(size, Image.Resampling.LANCZOS), (left, _MARGIN))
        sheet.paste(one, (left, size[1] + 2 * _MARGIN))
    return sheet


def outpaint(model: Model) -> Image.Image:
    task = replace(held_out_task("add", 1), instruction="add a yellow star at row 2 column 5")
    wider = extended(prompt_of(model, task), left=0, top=0, right=1, bottom=0)
    final = denoise(model, wider).final
    whole, _ = put_back(model, wider, render(task.source), final, mode="mask")
    picture = whole.resize((_SIDE * 5 // 4, _SIDE))
    result = beside(picture, [Word(w) for w in decode_text(model, final)[0].split()], "result")
    first = panel(render(task.source), "input", f"“{task.instruction}”")
    sheet = Image.new("RGB", (first.width + result.width + 3 * _MARGIN, first.height), "white")
    sheet.paste(first, (_MARGIN, 0))
    sheet.paste(result, (first.width + 2 * _MARGIN, 16))
    return sheet


def fix_the_plan(model: Model) -> Image.Image:
    task = held_out_task("recolour", 3)
    prompt = prompt_of(model, task)
    plan = "the red circle at row 1 column 4 becomes a green star ."
    planned = with_text(model, prompt.without_instruction(), plan)
    return side_by_side(
        [
            panel(render(task.source), "input", f"“{task.instruction}”"),
            result_panel(model, prompt, "its own plan"),
            result_panel(model, planned, "your plan"),
        ]
    )


def explain(model: Model) -> Image.Image:
    task = held_out_task("replace", 7)
    prompt = prompt_of(model, task)
    after = denoise(model, prompt, record=0).final
    with_picture = prompt.starting_from(TokenState(prompt.initial.text, after.image))
    explained = denoise(model, with_picture, record=0).final
    return side_by_side(
        [
            panel(render(task.source), "before", ""),
            panel(decode_image(model, after)[0], "after", ""),
            panel(None, "explained", decode_text(model, explained)[0]),
        ]
    )


def stop_keep_and_redraw(model: Model) -> Image.Image:
    task = held_out_task("recolour", 4)
    prompt = prompt_of(model, task)
    half = denoise(model, prompt).at(0.9).after
    colours = pattern_selected(text_pieces(model, half)[0], "|".join(COLOURS))
    cells = torch.zeros(1, *half.grid, dtype=torch.bool)
    cells[:, 1, 2] = True
    kept = reopened(half, text=torch.tensor([colours]), image=cells)

    final = denoise(model, prompt.starting_from(kept), SamplerSettings(seed=7), record=0).final
    return side_by_side(
        [
            state_panel(model, "stopped at 90%", half),
            state_panel(model, "kept", kept),
            state_panel(model, "redrawn", final),
        ]
    )


def orders(model: Model) -> Image.Image:
    prompt = prompt_of(model, held_out_task("move", 6))
    frames = []
    for order in ("parallel", "text_first"):
        run = denoise(model, prompt, SamplerSettings(order=order))
        frames += trajectory_frames(model, run, [run.at(0.45), run.at(0.8)])
    return contact_sheet(frames, 2)


def best_of_n(model: Model) -> Image.Image:
    task = held_out_task("count", 8)
    settings = SamplerSettings(text_steps=4, image_steps=2, text_temperature=1.0)
    final = denoise(model, prompt_of(model, task, batch=4), settings, record=0).final
    pictures, texts = decode_image(model, final), decode_text(model, final)
    scores = ClipScorer(DEMO_CLIP).score(texts, pictures)
    best = int(scores.argmax())
    return side_by_side(
        [
            panel(picture, f"{score:.3f}{' best' if i == best else ''}", text)
            for i, (picture, score, text) in enumerate(zip(pictures, scores, texts, strict=True))
        ]
    )


def of_one_kind(model: Model, instruction: str, *scenes: int, **options) -> Image.Image:
    """Half-way and at the end of an answer with a picture or with a text, as the workflow of this
    ``instruction`` gives it. ``scenes``: seeds of *Demo Scene*."""
    pictures = [render(task_numbered(HELD_OUT + n, kinds=EDITS).source) for n in scenes]
    image, reference = (*pictures, None, None)[:2]
    own = {"text_steps": 16, "block_length": 16, "joint_guidance": 0.0, "image_temperature": 0.0}
    prompt = encode_instruction(model, instruction, image, reference=reference, **options)
    run = denoise(model, prompt, SamplerSettings(**own))
    return contact_sheet(trajectory_frames(model, run, [run.at(0.2), run.at(1)]), 2)


def lumina_thumbnails() -> dict[str, Image.Image]:
    model = load_checkpoint("demo-lumina")
    words = "draw a red star at row 2 column 2 and a blue circle in the top right corner on white"
    return {
        "Describe a picture": of_one_kind(model, "describe the picture", 3, task="describe"),
        "Text to image at any size": of_one_kind(model, words, size=(160, 128)),
        "Style from a second picture": of_one_kind(model, "", 3, 4),
    }


def main() -> None:
    model = load_checkpoint("demo")
    edit, draw = held_out_task("recolour", 18), held_out_task("generate", 1)
    thumbnails = {
        "Edit an image": side_by_side(run_panels(model, edit, (0.6,))),
        "Generate with thinking": side_by_side(run_panels(model, draw, (0.6,))),
        "Watch it think": watch_it_think(model),
        "Inpaint": inpaint(model),
        "Outpaint": outpaint(model),
        "Edit a large photo": edit_large(model),
        "Inpaint part of a large photo": inpaint_large(model),
        "Fix the plan and redraw": fix_the_plan(model),
        "Explain this edit": explain(model),
        "Stop, keep and redraw": stop_keep_and_redraw(model),
        "Parallel against sequential": orders(model),
        "Best of N": best_of_n(model),
        **lumina_thumbnails(),
    }
    for name, sheet in thumbnails.items():
        sheet.save(ROOT / "workflows" / f"{name}.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    main()

"""The pictures of the nodes' help pages, of real runs of the demo.

``python -m mmada_parallel.benchmarks.help_pictures [NAME …]`` writes ``web/docs/pictures/*.webp``,
or those of these names; those of training are made by ``benchmarks/figures_training.py``. They are
drawn for the narrow panel in which the page shows help, and few kilobytes each: they are in the
archive that users download.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from mmada_parallel.benchmarks.figures import ROOT, held_out_task
from mmada_parallel.benchmarks.quantised import by_format
from mmada_parallel.benchmarks.thumbnails import Panel, state_panel
from mmada_parallel.demo import open_tasks
from mmada_parallel.demo.checker import check
from mmada_parallel.demo.evaluate import prompt_of, with_text
from mmada_parallel.demo.photo import on_a_wall
from mmada_parallel.demo.render import render
from mmada_parallel.demo.tasks import Task
from mmada_parallel.mmp_core import (
    Prompt,
    SamplerSettings,
    Trajectory,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
    put_back,
)
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.mmp_core.editing import extended, reopened, text_pieces, words_selected
from mmada_parallel.mmp_core.fitting import fitted_input
from mmada_parallel.mmp_core.image.mask_settings import MaskSettings
from mmada_parallel.mmp_core.image.put_back_settings import PutBackSettings
from mmada_parallel.mmp_core.model.lora import adaptable_layers
from mmada_parallel.mmp_core.variation import confidence_in, varied
from mmada_parallel.training.rewards.clip import DEMO_CLIP, ClipScorer
from mmada_parallel.views.mask_overlay import prompt_overlays
from mmada_parallel.views.sheet import MASK_SIGN, Word, contact_sheet, lines_in
from mmada_parallel.views.trajectory import trajectory_frames
from PIL import Image, ImageDraw, ImageFont, ImageOps

PLACE = ROOT / "web" / "docs" / "pictures"
_WIDTH, _SIDE, _MARGIN, _LETTERS, _LINES = 440, 170, 10, 23, 34


def column(*panels: tuple[str, Panel]) -> Image.Image:
    """Panels below each other, each with its title and its words right of its picture."""
    heights = [
        _SIDE if panel.picture else _LINES * (1 + len(textwrap.wrap(panel.words, 32)))
        for _, panel in panels
    ]
    size = _WIDTH, sum(heights) + _MARGIN * (len(panels) + 1)
    sheet, top = Image.new("RGB", size, "white"), _MARGIN
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LETTERS)
    for height, (title, panel) in zip(heights, panels, strict=True):
        left = _MARGIN
        if panel.picture:
            fitted = ImageOps.contain(panel.picture.convert("RGB"), (_SIDE, _SIDE))
            sheet.paste(fitted, (left, top + (_SIDE - fitted.height) // 2))
            left += _SIDE + _MARGIN
        draw.text((left, top), title, fill="#666666", font=font)
        words = [Word(word, masked=word == MASK_SIGN) for word in panel.words.split()]
        box = left, top + _LINES, _WIDTH - _MARGIN, top + height + _MARGIN
        lines_in(draw, words, box, _LETTERS)
        top += height + _MARGIN
    return sheet


def quoted(task: Task) -> Panel:
    before = task.before or task.source
    return Panel(render(before), f"“{task.instruction}”")


@cache
def demo() -> Model:
    return load_checkpoint("demo", dtype=torch.float32)


@cache
def usual() -> tuple[Prompt, Trajectory]:
    """The run that several pictures show."""
    prompt = prompt_of(demo(), held_out_task("recolour", 18))
    return prompt, denoise(demo(), prompt)


OPEN = open_tasks.task(4)
"""An instruction that has several right answers."""


@cache
def leaving_a_choice() -> tuple[Prompt, Trajectory]:
    """The first right run, over the seeds from 1."""
    prompt = encode_instruction(demo(), OPEN.instruction, render(OPEN.source))
    for seed in range(1, 20):
        run = denoise(demo(), prompt, SamplerSettings(seed=seed, text_temperature=1.0))
        if right(state_panel(demo(), run.final)):
            return prompt, run
    raise ValueError("None of the answers is right.")


def right(panel: Panel) -> bool:
    return check(OPEN, panel.picture, panel.words).agree


def right_answers(model: Model, prompt: Prompt, count: int) -> list[Panel]:
    """The first ``count`` right ones that differ, over the seeds from 20."""
    panels: dict[str, Panel] = {}
    for seed in range(20, 40):
        panel = result(model, prompt, SamplerSettings(seed=seed, text_temperature=1.0))
        if right(panel):
            panels.setdefault(panel.words, panel)
        if len(panels) == count:
            break
    return list(panels.values())


def result(model: Model, prompt: Prompt, settings: SamplerSettings | None = None) -> Panel:
    return state_panel(model, denoise(model, prompt, settings, record=0).final)


def loader(model: Model) -> Image.Image:
    """The same seed with weights as stored and quantised."""
    linear = list(adaptable_layers(model.transformer).values())
    stored = [layer.weight.data.clone() for layer in linear]
    prompt, run = usual()
    panels = [("as stored", state_panel(model, run.final))]
    for title, form in {"int8": "int8", "4 bits (nvfp4)": "nvfp4"}.items():
        for layer, weight in zip(linear, stored, strict=True):
            layer.weight.data.copy_(by_format(form)(weight))
        panels.append((title, result(model, prompt)))
    for layer, weight in zip(linear, stored, strict=True):
        layer.weight.data.copy_(weight)
    return column(*panels)


def denoising(model: Model) -> Image.Image:
    _, run = usual()
    steps = [run.at(moment) for moment in (0.3, 0.65, 1.0)]
    titles = [f"step {step.index + 1} of {run.total_steps}" for step in steps]
    return column(*((t, state_panel(model, s.after)) for t, s in zip(titles, steps, strict=True)))


def decoded_image(model: Model) -> Image.Image:
    half = usual()[1].at(0.65).after
    grey, magenta = (
        decode_image(model, half, fill=fill)[0] for fill in ((0.5, 0.5, 0.5), (1.0, 0.0, 1.0))
    )
    masked = Image.fromarray(((half.image[0] < 0).numpy() * 255).astype("uint8"))
    masked = masked.resize((128, 128), Image.Resampling.NEAREST)
    return column(
        ("fill grey", Panel(grey)), ("fill magenta", Panel(magenta)), ("undecided", Panel(masked))
    )


def decoded_text(model: Model) -> Image.Image:
    _, run = usual()
    panels = []
    for moment in (0.2, 0.5, 1.0):
        step = run.at(moment)
        words = decode_text(model, step.after, masked=f" {MASK_SIGN}")[0]
        panels.append((f"step {step.index + 1} of {run.total_steps}", Panel(None, words)))
    return column(*panels)


def demo_scene(_: Model) -> Image.Image:
    task = held_out_task("move", 5)
    return column(
        ("image", Panel(render(task.source))),
        ("instruction", Panel(None, task.instruction)),
        ("the right answer", Panel(render(task.after))),
    )


def masked_prompt(model: Model) -> tuple[Task, Image.Image, Image.Image, Prompt]:
    """A stroke over a shape that is to be replaced."""
    task, stroke = held_out_task("replace", 5), Image.new("L", (128, 128))
    ImageDraw.Draw(stroke).ellipse((98, 34, 127, 62), fill=255)
    return task, render(task.source), stroke, prompt_of(model, task, mask=stroke)


def encoded(model: Model) -> Image.Image:
    task, before, stroke, prompt = masked_prompt(model)
    (overlay,) = prompt_overlays(prompt, [before], [stroke])
    final = denoise(model, prompt, record=0).final
    after, _ = put_back(
        model, prompt, before, final, mask=stroke, mode="mask", settings=PutBackSettings()
    )
    return column(
        ("picture", Panel(before, f"“{task.instruction}”")),
        ("mask", Panel(overlay, "what is drawn anew")),
        ("result", Panel(after)),
    )


def extended_canvas(model: Model) -> Image.Image:
    task = replace(held_out_task("add", 1), instruction="add a yellow star at row 2 column 5")
    wider = extended(prompt_of(model, task), left=0, top=0, right=1, bottom=0)
    return column(
        ("picture", Panel(render(task.source), f"“{task.instruction}”")),
        ("right: 1 token", Panel(state_panel(model, wider.initial).picture)),
        ("result", Panel(result(model, wider).picture)),
    )


def several_instructions(model: Model) -> Image.Image:
    task = held_out_task("recolour", 18)
    lines = (task.instruction, "make the background blue", "add a green star at row 4 column 4")
    prompts = (encode_instruction(model, line, render(task.source)) for line in lines)
    panels = [Panel(result(model, prompt).picture) for prompt in prompts]
    shown = enumerate(zip(panels, lines, strict=True), start=1)
    return column(*((f"line {n}", Panel(p.picture, f"“{line}”")) for n, (p, line) in shown))


def dataset(_: Model) -> Image.Image:
    task = held_out_task("replace", 7)
    return column(
        ("cat.png", Panel(render(task.source))),
        ("cat.txt", Panel(None, task.instruction)),
        ("cat.target.png", Panel(render(task.after))),
    )


def tokens(model: Model) -> Image.Image:
    prompt, run = leaving_a_choice()
    half = run.at(0.3).after
    finished = right_answers(model, prompt.starting_from(half), 2)
    titles = ("denoised on", "with another seed")
    return column(("saved", state_panel(model, half)), *zip(titles, finished, strict=False))


def best_of(model: Model) -> Image.Image:
    prompt = prompt_of(model, held_out_task("count", 8), batch=3)
    settings = SamplerSettings(text_steps=4, image_steps=2, text_temperature=1.0)
    final = denoise(model, prompt, settings, record=0).final
    pictures, texts = decode_image(model, final), decode_text(model, final)
    scores = ClipScorer(DEMO_CLIP).score(texts, pictures).tolist()
    titles = [f"score {score:.2f}{'  best' * (score == max(scores))}" for score in scores]
    return column(*((t, Panel(p, w)) for t, p, w in zip(titles, pictures, texts, strict=True)))


def laid_back(model: Model) -> Image.Image:
    task = held_out_task("replace", 6)
    others = [held_out_task("recolour", n).source for n in (7, 8)]
    before, mask = on_a_wall(task.source, others), Image.new("L", (1536, 1024))
    mask.paste(255, (704, 384, 832, 512))
    region = fitted_input(
        model, (0, 0), before.size, [mask], settings=MaskSettings(region="mask")
    ).regions[0]
    prompt = encode_instruction(model, task.instruction, before, mask=mask, region=region)
    final = denoise(model, prompt, record=0).final
    after, _ = put_back(
        model, prompt, before, final, mask=mask, settings=PutBackSettings(fill="replace")
    )
    return column(
        ("original", Panel(before, f"“{task.instruction}”")),
        ("tokens", Panel(decode_image(model, final)[0], "around the mask, 128x128")),
        ("put back", Panel(after, "1536x1024 as before")),
    )


def remasked(model: Model) -> Image.Image:
    prompt, run = usual()
    final = run.final
    words = words_selected(text_pieces(model, final)[0], "1-4")
    cells = torch.zeros(1, *final.grid, dtype=torch.bool)
    cells[:, :2] = True
    again = reopened(final, text=torch.tensor([words]), image=cells)
    redrawn = result(model, prompt.starting_from(again), SamplerSettings(seed=3))
    return column(
        ("result", state_panel(model, final)),
        ("masked again", state_panel(model, again)),
        ("denoised again", redrawn),
    )


def set_tokens(model: Model) -> Image.Image:
    task = held_out_task("recolour", 3)
    prompt = prompt_of(model, task)
    plan = "the red circle at row 1 column 4 becomes a green star ."
    planned = result(model, with_text(model, prompt.without_instruction(), plan))
    return column(
        ("picture", Panel(render(task.source))),
        ("your text", Panel(None, plan)),
        ("result", Panel(planned.picture)),
    )


def trajectory_sheet(model: Model) -> Image.Image:
    _, run = usual()
    steps = [run.at(moment) for moment in (0.3, 0.65, 1.0)]
    return contact_sheet(trajectory_frames(model, run, steps, side=150), 1)


def trajectory_step(model: Model) -> Image.Image:
    prompt = prompt_of(model, held_out_task("move", 5))
    run = denoise(model, prompt)
    step = run.at(0.6)
    other = result(model, prompt.starting_from(step.after), SamplerSettings(seed=9))
    return column(
        (f"step {step.index + 1} of {run.total_steps}", state_panel(model, step.after)),
        ("as it ended", state_panel(model, run.final)),
        ("from there, seed 9", other),
    )


def variations(model: Model) -> Image.Image:
    prompt, run = leaving_a_choice()
    panels = [("result", state_panel(model, run.final))]
    for share in (0.5, 0.8):
        confidence, end = confidence_in(run), model.layout.end_of_text
        start = varied(run.final, confidence, text=share, image=share, end_of_text=end)
        shown = {panel.words for _, panel in panels}
        answers = right_answers(model, prompt.starting_from(start), 3)
        other = next((panel for panel in answers if panel.words not in shown), answers[0])
        panels.append((f"picture, text {share}", other))
    return column(*panels)


def preference(_: Model) -> Image.Image:
    task, picked, rejected = two_to_choose_from()
    return column(("picture", quoted(task)), ("picked", picked), ("rejected", rejected))


@cache
def two_to_choose_from() -> tuple[Task, Panel, Panel]:
    """Two right answers that differ."""
    first, second = right_answers(demo(), leaving_a_choice()[0], 2)
    return OPEN, first, second


PICTURES: dict[str, Callable[[Model], Image.Image]] = {
    "loader": loader,
    "denoise": denoising,
    "decode-image": decoded_image,
    "decode-text": decoded_text,
    "demo-scene": demo_scene,
    "encode": encoded,
    "extend-canvas": extended_canvas,
    "instructions": several_instructions,
    "dataset": dataset,
    "tokens": tokens,
    "best-of": best_of,
    "put-back": laid_back,
    "remask": remasked,
    "set-tokens": set_tokens,
    "trajectory-sheet": trajectory_sheet,
    "trajectory-step": trajectory_step,
    "vary": variations,
    "preference": preference,
}


def save(name: str, picture: Image.Image) -> None:
    PLACE.mkdir(exist_ok=True)
    picture.save(PLACE / f"{name}.webp", quality=50, method=6)
    print(name, picture.size, (PLACE / f"{name}.webp").stat().st_size, flush=True)


def main() -> None:
    for name in sys.argv[1:] or PICTURES:
        save(name, PICTURES[name](demo()))


if __name__ == "__main__":
    main()

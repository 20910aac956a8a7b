"""Pictures of what goes wrong, made by the demo, for ``docs/when-it-looks-wrong.md``.

``python -m mmada_parallel.benchmarks.figures_wrong`` writes ``docs/pictures/wrong-*.png``. Which
held-out task shows a symptom is searched for, in order, over the first 200.
"""

from __future__ import annotations

from typing import Any

from mmada_parallel.benchmarks.figures import (
    held_out_task,
    panel,
    result_panel,
    side_by_side,
    state_panel,
)
from mmada_parallel.benchmarks.figures_method import PICTURES
from mmada_parallel.demo.evaluate import answer, held_out, prompt_of, with_text
from mmada_parallel.demo.render import render
from mmada_parallel.demo.tasks import Task
from mmada_parallel.mmp_core import (
    SamplerSettings,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
    put_back,
)
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.mmp_core.image.put_back_settings import PutBackSettings
from mmada_parallel.views.mask_overlay import prompt_overlays
from PIL import Image, ImageChops, ImageDraw

_CASES = 200


def spoilt(model: Model, measure: str, **settings: Any) -> tuple[int, Task]:
    """The first held-out edit that is right in all with default settings, and wrong in ``measure``
    with ``settings``."""
    tasks = held_out(_CASES)
    usual, other = (
        {a.number: a.verdict for a in answer(model, tasks, chosen, seed=0, batch=50)}
        for chosen in (SamplerSettings(), SamplerSettings(**settings))
    )
    wrong = [n for n in sorted(other) if not getattr(other[n], measure)]
    print(f"{settings}: {len(wrong)} of {_CASES} wrong in {measure}", flush=True)
    right = next(n for n in wrong if tasks[n].before and usual[n].picture and usual[n].agree)
    return right, tasks[right]


def wrong_and_right(
    model: Model, measure: str, title: str, other: str = "as recommended", **settings: Any
) -> Image.Image:
    number, task = spoilt(model, measure, **settings)
    prompt = prompt_of(model, task)
    return side_by_side(
        [
            panel(render(task.source), "input", f"“{task.instruction}”"),
            result_panel(model, prompt, title, seed=number, **settings),
            result_panel(model, prompt, other, seed=number),
        ]
    )


def text_ignored(model: Model) -> Image.Image:
    task = held_out_task("recolour", 3)
    prompt = prompt_of(model, task)
    plan = "the red circle at row 1 column 4 becomes a green star ."
    return side_by_side(
        [
            panel(render(task.source), "input", f"instruction: “{task.instruction}”"),
            panel(None, "your text", plan),
            result_panel(model, with_text(model, prompt, plan), "with the instruction"),
            result_panel(
                model, with_text(model, prompt.without_instruction(), plan), "instruction left out"
            ),
        ]
    )


def masks(model: Model) -> Image.Image:
    """A stroke over a corner of three cells, as coverage and grow let it select."""
    task = held_out_task("replace", 5)
    before, stroke = render(task.source), Image.new("L", (128, 128))
    ImageDraw.Draw(stroke).ellipse((90, 36, 132, 62), fill=255)
    panels = []
    for title, settings in {
        "coverage 0": {},
        "coverage 0.5": {"coverage": 0.5},
        "coverage 0, grow 1": {"grow": 1},
    }.items():
        prompt = encode_instruction(model, task.instruction, before, mask=stroke, **settings)
        (overlay,) = prompt_overlays(prompt, [before], [stroke])
        count = int((prompt.initial.image < 0).sum())
        panels.append(panel(overlay, title, f"{count} of 16 image tokens are drawn anew"))
    return side_by_side(panels)


def unfinished(model: Model) -> Image.Image:
    run = denoise(model, prompt_of(model, held_out_task("recolour", 4)))
    return side_by_side(
        [
            state_panel(model, "masked in part", run.at(0.6).after),
            state_panel(model, "finished", run.final),
        ]
    )


def outside(model: Model) -> Image.Image:
    """What decoding alone changes outside an edit, four times as strong."""
    task = held_out_task("recolour", 18)
    before, prompt = render(task.source), prompt_of(model, task)
    final = denoise(model, prompt, record=0).final
    decoded = decode_image(model, final)[0]
    back, _ = put_back(model, prompt, before, final, settings=PutBackSettings())
    differences = [
        ImageChops.difference(before, picture).point(lambda level: min(255, 4 * level))
        for picture in (decoded, back)
    ]
    return side_by_side(
        [
            panel(decoded, "Decode Image", decode_text(model, final)[0]),
            panel(differences[0], "what differs, times 4", ""),
            panel(back, "Put Back", ""),
            panel(differences[1], "what differs, times 4", ""),
        ]
    )


def main() -> None:
    model = load_checkpoint("demo", device="cpu")
    PICTURES.mkdir(exist_ok=True)
    few: dict[str, Any] = {"text_steps": 2, "image_steps": 1}
    for name, picture in {
        "steps": lambda: wrong_and_right(model, "agree", "2 text steps, 1 image step", **few),
        "variety": lambda: wrong_and_right(
            model, "sentence", "text temperature 3", text_temperature=3.0
        ),
        "text": lambda: text_ignored(model),
        "mask": lambda: masks(model),
        "grey": lambda: unfinished(model),
        "outside": lambda: outside(model),
    }.items():
        picture().save(PICTURES / f"wrong-{name}.png", optimize=True)


if __name__ == "__main__":
    main()

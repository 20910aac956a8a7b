"""Pictures of how the demo denoises, for the README and ``docs/how-parallel-denoising-works.md``.

``python -m mmada_parallel.benchmarks.figures_method`` writes ``docs/edit.gif`` and
``docs/pictures/*.png``, and prints the numbers that the page quotes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmada_parallel.benchmarks.figures import (
    ROOT,
    held_out_task,
    page,
    panel,
    result_panel,
    side_by_side,
)
from mmada_parallel.demo.evaluate import answer, held_out, prompt_of
from mmada_parallel.demo.picture_book.edits import EDITS
from mmada_parallel.demo.picture_book.tasks import task as page_task
from mmada_parallel.demo.render import render
from mmada_parallel.mmp_core import (
    MASKED,
    Prompt,
    SamplerSettings,
    TokenState,
    Trajectory,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.mmp_core.model.transformer import Block, sdpa_attention
from mmada_parallel.views.plot import line_plot
from mmada_parallel.views.sheet import Word, beside, contact_sheet, stacked
from mmada_parallel.views.trajectory import trajectory_frames
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PICTURES = ROOT / "docs" / "pictures"
SEGMENTS = ("instruction", "input picture", "text", "picture")
"""Where a query of the answer may look; the rest are markers."""
_TASKS = 40
_GUIDANCES = (0.0, 1.0, 3.5, 8.0, 20.0, 50.0)


@contextmanager
def attention_of(model: Model) -> Iterator[list[Tensor]]:
    """A list that gets each block's attention (heads, L, L) while the model runs, batches of 1."""
    maps: list[Tensor] = []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        maps.append((q @ k.mT / q.shape[-1] ** 0.5).float().softmax(-1)[0])
        return sdpa_attention(q, k, v)

    blocks = [block for block in model.transformer.blocks if isinstance(block, Block)]
    for block in blocks:
        block.attention = attention
    try:
        yield maps
    finally:
        for block in blocks:
            block.attention = sdpa_attention


@torch.no_grad()
def attention_at(model: Model, prompt: Prompt, state: TokenState) -> tuple[Tensor, dict]:
    """The mean attention of all blocks and heads (L, L) at ``state``, and the positions of each of
    :data:`SEGMENTS`."""
    run = model.layout.model_input(prompt, state)
    codes = model.layout.image_offset + torch.arange(model.layout.codebook_size)
    first = int(min(run.image_positions.min(), run.text_positions.min()))
    before = run.ids[0, :first]
    places = {
        "instruction": [
            place
            for place, token in enumerate(before.tolist())
            if token < model.layout.mask_id and token not in prompt.unconditional
        ],
        "input picture": torch.isin(before, codes).nonzero()[:, 0].tolist(),
        "text": run.text_positions.tolist(),
        "picture": run.image_positions.tolist(),
    }
    with attention_of(model) as maps:
        model.transformer(run.ids)
    return torch.stack(maps).mean((0, 1)), places


def attention_plots(model: Model) -> Image.Image:
    """Where words and patches of the answer look over the steps, as a mean over tasks."""
    shares: dict[str, list[Tensor]] = {"text": [], "picture": []}
    for task in [held_out_task("recolour", number) for number in range(_TASKS)]:
        prompt = prompt_of(model, task)
        rows: dict[str, list[Tensor]] = {"text": [], "picture": []}
        for step in denoise(model, prompt):
            weights, places = attention_at(model, prompt, step.state)
            for asking, row in rows.items():
                seen = weights[places[asking]].mean(0)
                row.append(torch.stack([seen[places[name]].sum() for name in SEGMENTS]))
        for asking, row in rows.items():
            shares[asking].append(torch.stack(row))
    plots = []
    for asking, runs in shares.items():
        steps = min(map(len, runs))
        mean = torch.stack([run[:steps] for run in runs]).mean(0)
        ends = {
            n: (round(v[0], 3), round(v[-1], 3))
            for n, v in zip(SEGMENTS, mean.T.tolist(), strict=True)
        }
        print(f"attention of the {asking}, first and last step: {ends}")
        names = [f"its {name}" if name in shares else name for name in SEGMENTS]
        label = f"where the {asking} looks, as a share of its attention"
        plots.append(
            line_plot(mean, range(1, steps + 1), x_label="step", y_label=label, names=names)
        )
    return contact_sheet(plots, 2)


def word_attention(model: Model, word: str, moments: tuple[float, ...]) -> Image.Image:
    """Which patches of the input and of the forming picture the place of one ``word`` of the answer
    looks at: the brighter, the more."""
    task = held_out_task("recolour", 18)
    prompt, before = prompt_of(model, task), render(task.source)
    run = denoise(model, prompt)
    place = decode_text(model, run.final)[0].split().index(word)
    panels = []
    for moment in moments:
        step = run.at(moment)
        weights, places = attention_at(model, prompt, step.after)
        seen = weights[places["text"][place]]
        guess = decode_image(model, step.guess)[0]
        for picture, name in ((before, "input picture"), (guess, "picture")):
            part = seen[places[name]].view(run.final.grid)
            words = f"{part.sum():.0%} of the attention of “{word}”"
            title = f"{name}, step {step.index + 1}"
            panels.append(panel(lit(picture, part / part.max()), title, words))
    return side_by_side(panels)


def lit(picture: Image.Image, light: Tensor) -> Image.Image:
    """``picture`` as bright in each cell as ``light`` (H, W), 0 … 1, says; never quite dark."""
    levels = Image.fromarray((light.clamp(0.12, 1) * 255).byte().numpy())
    levels = levels.resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(picture, Image.new("RGB", picture.size), levels)


def when_unmasked(model: Model) -> Image.Image:
    """One run: how much is unmasked after each step, and the step of each word and patch."""
    prompt = prompt_of(model, held_out_task("recolour", 18))
    run = denoise(model, prompt)
    left = [[(t == MASKED).float().mean() for t in (s.after.text, s.after.image)] for s in run]
    plot = line_plot(
        1 - torch.tensor(left),
        range(1, len(run) + 1),
        x_label="step",
        y_label="share that is unmasked",
        names=["text", "picture"],
    )
    text, image = (sum(t == MASKED for t in _states(run, name)) for name in ("text", "image"))
    words = decode_text(model, run.final)[0].split()
    numbered = [Word(f"{word} ({n})") for word, n in zip(words, text[0].tolist(), strict=False)]
    side = plot.height // 2
    picture = decode_image(model, run.final)[0].resize((side, side))
    draw, cell = ImageDraw.Draw(picture), side // image.shape[1]
    for (_, row, column), number in zip(
        torch.ones_like(image).nonzero().tolist(), image.flatten().tolist(), strict=True
    ):
        draw.text(
            (column * cell + 3, row * cell + 2), str(number), "black", ImageFont.load_default(13)
        )
    side_text = beside(picture, numbered, "unmasked at step (number)")
    sheet = Image.new("RGB", (plot.width + side_text.width, plot.height), "white")
    sheet.paste(plot, (0, 0))
    sheet.paste(side_text, (plot.width, (plot.height - side_text.height) // 2))
    return sheet


def _states(run: Trajectory, name: str) -> list[Tensor]:
    """Of all states but the last; a token is masked in as many as the step that unmasks it."""
    return [getattr(state, name) for state in (run.initial, *(s.after for s in run.steps[:-1]))]


def guidance_figures(model: Model, cases: int = 200) -> tuple[Image.Image, Image.Image]:
    """Of held-out tasks of the demo those that come out right by guidance, as a plot; and one that
    strong guidance spoils, at each guidance."""
    tasks, rows, right = held_out(cases), [], []
    for guidance in _GUIDANCES:
        settings = SamplerSettings(joint_guidance=guidance)
        answers = sorted(answer(model, tasks, settings, seed=0, batch=50), key=lambda a: a.number)
        right.append([a.verdict.picture for a in answers])
        rows.append(
            [sum(getattr(a.verdict, m) for a in answers) / cases for m in ("picture", "agree")]
        )
        print("guidance", guidance, "picture right, agree:", rows[-1], flush=True)
    plot = line_plot(
        torch.tensor(rows),
        [round(g) for g in _GUIDANCES],
        x_label="guidance",
        y_label=f"share of {cases} held-out tasks",
        names=["picture right", "text agrees"],
    )
    spoilt = next(
        n
        for n, t in enumerate(tasks)
        if t.before and right[0][n] and right[2][n] and not right[-1][n]
    )
    prompt = prompt_of(model, tasks[spoilt])
    panels = [panel(render(tasks[spoilt].source), "input", f"“{tasks[spoilt].instruction}”")]
    for guidance in (0.0, 3.5, 20.0, 50.0):
        title = f"guidance {guidance:g}"
        panels.append(result_panel(model, prompt, title, joint_guidance=guidance, seed=spoilt))
    return plot, side_by_side(panels)


def moving() -> list[Image.Image]:
    """Frames of an edit in the picture book: the page with its instruction, and text and picture
    as they form."""
    model, instruction = load_checkpoint("picture-book"), "now it is night"
    before = page_task(6, held_out=True, kinds=tuple(EDITS)).source.picture()
    run = denoise(model, encode_instruction(model, instruction, before))
    steps = [run.steps[i] for i in range(0, len(run), 2)] + [run.end]
    first = beside(before, [Word(word) for word in f"“{instruction}”".split()], "input")
    return [stacked([first, frame]) for frame in trajectory_frames(model, run, steps)]


def orders() -> Image.Image:
    """An edit that the same steps and seed get right in parallel and wrong text first."""
    model, task = load_checkpoint("picture-book"), page("recolour", 1)
    shown = [panel(task.source.picture(), "input", f"“{task.instruction}”")]
    quick = {"text_steps": 4, "image_steps": 4, "text_temperature": 1.0, "joint_guidance": 0.0}
    for order, title in (("parallel", "in parallel"), ("text_first", "text first")):
        shown.append(result_panel(model, prompt_of(model, task), title, order=order, **quick))
    return side_by_side(shown)


def main() -> None:
    model = load_checkpoint("demo")
    PICTURES.mkdir(exist_ok=True)
    frames = moving()
    last = [600, *[160] * (len(frames) - 2), 3000]
    frames[0].save(
        ROOT / "docs" / "edit.gif", save_all=True, append_images=frames[1:], duration=last, loop=0
    )
    plot, pictures = guidance_figures(model)
    for name, picture in {
        "unmasking": when_unmasked(model),
        "attention": attention_plots(model),
        "word": word_attention(model, "4", (0.3, 0.8)),
        "guidance": pictures,
        "orders": orders(),
        "guidance-right": plot,
    }.items():
        picture.save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

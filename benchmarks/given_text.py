"""What fixed text, fixed pictures, locked tokens and the order of denoising do to the result.

``python -m mmada_parallel.benchmarks.given_text [--cases 200]`` prints JSON, over held-out scenes:

- ``instruction``: picture right when the model writes its own text (the base rate);
- ``given_text``: the text is fixed to that of *another* edit of the same scene, and the
  instruction left out, as Set Tokens does; the picture is right when it shows what the text says;
- ``given_text_against_instruction``: the same with the instruction, which asks for something else;
- ``explained``: the picture is fixed to the right one and only the text denoised; the sentence is
  right (``explained_without_instruction``: read from the two pictures alone);
- ``locked``: a half-denoised state with random tokens reopened is denoised again by another seed;
  the share of cases in which no locked token changed;
- ``orders``: picture, sentence and agreement when both form in parallel, text first, image first.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from typing import Any

import torch
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.demo import world
from mmada_parallel.demo.checker import apply_sentence, check
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.evaluate import judge, prompt_of, with_text
from mmada_parallel.demo.kinds import EDITS, KINDS
from mmada_parallel.demo.tasks import Task
from mmada_parallel.mmp_core import (
    MASKED,
    Prompt,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.mmp_core.editing import reopened


def pairs(cases: int) -> list[tuple[Task, Task]]:
    """Two edits of each of ``cases`` held-out scenes, with different results."""
    edits = []
    for number in range(cases):
        wanted = world.task(HELD_OUT + number, kinds=EDITS)
        other = wanted
        for seed in range(100):
            rng = random.Random(f"other {number} {seed}")
            other = KINDS[rng.choice(EDITS)].make(rng, wanted.source)
            if other.after != wanted.after:
                break
        edits.append((wanted, other))
    return edits


def given(
    model: Model, task: Task, other: Task, settings: SamplerSettings, instructed: bool
) -> bool:
    prompt = _prompt(model, task, instructed)
    start = with_text(model, prompt, other.sentence)
    final = denoise(model, start, settings, record=0).final
    assert torch.equal(final.text, start.initial.text)
    return check(other, decode_image(model, final)[0], other.sentence).picture


def explains(model: Model, task: Task, settings: SamplerSettings, instructed: bool) -> bool:
    codes = torch.tensor([task.after.codes()])
    prompt = _prompt(model, task, instructed)
    start = prompt.starting_from(TokenState(prompt.initial.text, codes))
    final = denoise(model, start, settings, record=0).final
    assert torch.equal(final.image, codes)
    sentence = decode_text(model, final)[0]
    return apply_sentence(sentence, task.before, task.after.grid) == task.after


def _prompt(model: Model, task: Task, instructed: bool) -> Prompt:
    prompt = prompt_of(model, task)
    return prompt if instructed else prompt.without_instruction()


def follows_instruction(model: Model, task: Task, settings: SamplerSettings) -> bool:
    final = denoise(model, prompt_of(model, task), settings, record=0).final
    return check(task, decode_image(model, final)[0], decode_text(model, final)[0]).picture


def keeps_locked(model: Model, task: Task, settings: SamplerSettings) -> bool:
    rng = torch.Generator().manual_seed(settings.seed)
    prompt = prompt_of(model, task)
    tokens = denoise(model, prompt, settings).at(float(torch.rand(1, generator=rng))).after
    half = reopened(
        tokens,
        text=torch.rand(tokens.text.shape, generator=rng) < 0.5,
        image=torch.rand(tokens.image.shape, generator=rng) < 0.5,
    )
    again = replace(settings, seed=settings.seed + 10**6)
    final = denoise(model, prompt.starting_from(half), again, record=0).final
    return all(
        torch.equal(after[before != MASKED], before[before != MASKED]) and (after != MASKED).all()
        for before, after in ((half.text, final.text), (half.image, final.image))
    )


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", type=int, default=200)
    cases = parser.parse_args().cases
    model = load_checkpoint("demo", dtype=torch.float32)
    tasks = pairs(cases)
    seeded = [SamplerSettings(seed=number) for number in range(cases)]
    both = [(a, b, s) for (a, b), s in zip(tasks, seeded, strict=True)]
    results: dict[str, Any] = {
        "cases": cases,
        "instruction": share([follows_instruction(model, a, s) for a, _, s in both]),
        "given_text": share([given(model, a, b, s, False) for a, b, s in both]),
        "given_text_against_instruction": share([given(model, a, b, s, True) for a, b, s in both]),
        "explained": share([explains(model, a, s, True) for a, _, s in both]),
        "explained_without_instruction": share([explains(model, a, s, False) for a, _, s in both]),
        "locked": share([keeps_locked(model, a, s) for a, _, s in both]),
        "orders": {},
    }
    held_out = [world.task(HELD_OUT + number) for number in range(cases)]
    for order in ("parallel", "text_first", "image_first"):
        measured = judge(model, held_out, settings=SamplerSettings(order=order), batch=32)
        results["orders"][order] = {
            name: measured[name] for name in ("picture", "sentence", "agree", "interval")
        }
    results["settings"] = asdict(SamplerSettings())
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

"""Judge a checkpoint on held-out tasks of the toy world, with the exact checker."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..mmp_core import SamplerSettings, decode_image, decode_text, denoise, encode_instruction
from ..mmp_core.checkpoint import Model
from . import world
from .checker import Verdict, check, parse_codes
from .dataset import HELD_OUT
from .render import render
from .world import Task

MEASURES = ("picture", "sentence", "agree", "kept")


@dataclass(frozen=True)
class Answer:
    """One judged case."""

    task: Task
    sentence: str
    verdict: Verdict


def held_out(cases: int) -> list[Task]:
    """Tasks on 4×4 scenes with seeds that training never uses."""
    return [world.task(HELD_OUT + i) for i in range(cases)]


def answer(
    model: Model, tasks: Iterable[Task], settings: SamplerSettings, *, seed: int, batch: int
) -> Iterable[Answer]:
    """Denoise and judge ``tasks``, batched by prompt length; task ``i`` uses ``seed + i``."""
    groups = defaultdict(list)
    for number, task in enumerate(tasks):
        before = None if task.before is None else render(task.before)
        prompt = encode_instruction(model, task.instruction, before)
        key = (before is None, prompt.instruction.shape[1], prompt.initial.grid)
        groups[key].append((number, task, prompt))
    for members in groups.values():
        for start in range(0, len(members), batch):
            numbers, chosen, prompts = zip(*members[start : start + batch], strict=True)
            own = SamplerSettings(**{**asdict(settings), "seed": [seed + n for n in numbers]})
            prompt = type(prompts[0]).stack(prompts)
            final = denoise(model, prompt, own, record=0).final
            images, sentences = decode_image(model, final), decode_text(model, final)
            for task, image, sentence in zip(chosen, images, sentences, strict=True):
                yield Answer(task, sentence, check(task, image, sentence))


def copying(tasks: Iterable[Task]) -> dict[str, float]:
    """The measures of giving the input back unchanged with no words (editing tasks only)."""
    found = [check(t, render(t.before), "") for t in tasks if t.before is not None]
    return _means(found)


def tokenizer_parse_rate(model: Model, cases: int) -> float:
    """Share of scenes whose every cell is read back right through encoder and decoder."""
    from ..mmp_core.images import to_pil, to_pixels

    tokenizer, right = model.image_tokenizer, 0
    for task in held_out(cases):
        pixels = to_pixels(render(task.after), tokenizer.pixel_range).to(model.device)
        picture = to_pil(tokenizer.decode(tokenizer.encode(pixels)), tokenizer.pixel_range)[0]
        right += (parse_codes(picture, task.after.grid) == task.after.codes()).all()
    return right / cases


def evaluate(
    model: Model,
    *,
    cases: int = 500,
    seed: int = 0,
    settings: SamplerSettings | None = None,
    batch: int = 16,
    progress: Callable[[int, int], Any] | None = None,
) -> dict[str, Any]:
    """:func:`judge` over the first ``cases`` held-out tasks."""
    return judge(
        model, held_out(cases), seed=seed, settings=settings, batch=batch, progress=progress
    )


def judge(
    model: Model,
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    settings: SamplerSettings | None = None,
    batch: int = 16,
    progress: Callable[[int, int], Any] | None = None,
) -> dict[str, Any]:
    """Measures over ``tasks``, each with its 95 % interval, in all and by kind.

    ``picture``: edited picture right; ``sentence``: result sentence right; ``agree``: text and
    picture agree; ``kept``: untouched cells kept (see :class:`Verdict`). ``copying``: the same of
    giving the input back. ``progress(done, cases)`` is called after each case.
    """
    cases, began = len(tasks), time.perf_counter()
    settings = settings or SamplerSettings()
    answers = []
    for one in answer(model, tasks, settings, seed=seed, batch=batch):
        answers.append(one)
        if progress is not None:
            progress(len(answers), cases)
    seconds = time.perf_counter() - began
    kinds = {k: [a.verdict for a in answers if a.task.kind == k] for k in world.KINDS}
    verdicts = [a.verdict for a in answers]
    return {
        "cases": cases,
        "seed": seed,
        "seconds_per_case": seconds / cases,
        "tokenizer_parse": tokenizer_parse_rate(model, min(cases, 200)),
        **_means(verdicts),
        "interval": {m: _interval([float(getattr(v, m)) for v in verdicts]) for m in MEASURES},
        "copying": copying(tasks),
        "kinds": {k: {"cases": len(v), **_means(v)} for k, v in kinds.items() if v},
    }


def _means(verdicts: list[Verdict]) -> dict[str, float]:
    return {m: sum(float(getattr(v, m)) for v in verdicts) / len(verdicts) for m in MEASURES}


def _interval(values: list[float]) -> float:
    """Half width of the 95 % interval of the mean (normal approximation)."""
    mean = sum(values) / len(values)
    return 1.96 * math.sqrt(max(1e-12, sum((v - mean) ** 2 for v in values)) / len(values) ** 2)

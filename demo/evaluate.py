"""Judge a checkpoint on held-out tasks of its world, with the world's own judge."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..mmp_core import (
    Prompt,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
)
from ..mmp_core.checkpoint.load import Model
from ..mmp_core.editing import fixed_text
from ..training.rewards.clip import ClipScorer
from .dataset import HELD_OUT
from .tasks import Task
from .world import task as task_numbered
from .worlds import AnyTask, Verdict

MEASURES = ("picture", "sentence", "agree", "kept")


@dataclass(frozen=True)
class Answer:
    """One judged answer. ``number``: of the case; ``clip``: similarity of its text and picture."""

    number: int
    task: AnyTask[Any]
    sentence: str
    verdict: Verdict
    clip: float | None = None

    def measures(self) -> dict[str, float]:
        measures = {m: float(getattr(self.verdict, m)) for m in MEASURES}
        measures["words"] = float(len(self.sentence.split()))
        return measures if self.clip is None else {**measures, "clip": self.clip}


def held_out(cases: int) -> list[Task]:
    """Tasks of the toy world on 4×4 scenes with seeds that training never uses."""
    return [task_numbered(HELD_OUT + i) for i in range(cases)]


def prompt_of(model: Model, task: AnyTask[Any], **options: Any) -> Prompt:
    """``task`` as a prompt; ``options``: of ``encode_instruction``."""
    before = None if task.before is None else task.before.picture()
    return encode_instruction(model, task.instruction, before, **options)


def with_text(model: Model, prompt: Prompt, sentence: str) -> Prompt:
    """``prompt`` with ``sentence`` as its whole text; the picture is still to be drawn."""
    text = fixed_text(model, sentence, model.default_text_length)
    return prompt.starting_from(TokenState(text, prompt.initial.image))


def answer(
    model: Model,
    tasks: Iterable[AnyTask[Any]],
    settings: SamplerSettings,
    *,
    seed: int,
    batch: int,
    clip: ClipScorer | None = None,
) -> Iterable[Answer]:
    """Denoise and judge ``tasks``, batched by prompt length; task ``i`` uses ``seed + i``."""
    groups = defaultdict(list)
    for number, task in enumerate(tasks):
        prompt = prompt_of(model, task)
        key = (task.before is None, prompt.instruction.shape[1], prompt.initial.grid)
        groups[key].append((number, task, prompt))
    for members in groups.values():
        for start in range(0, len(members), batch):
            numbers, chosen, prompts = zip(*members[start : start + batch], strict=True)
            seeded = replace(settings, seed=[seed + number for number in numbers])
            final = denoise(model, Prompt.stack(prompts), seeded, record=0).final
            images, sentences = decode_image(model, final), decode_text(model, final)
            scores = (
                [None] * len(chosen) if clip is None else clip.score(sentences, images).tolist()
            )
            for number, task, sentence, image, score in zip(
                numbers, chosen, sentences, images, scores, strict=True
            ):
                yield Answer(number, task, sentence, task.check(image, sentence), score)


def copying(tasks: Iterable[AnyTask[Any]]) -> dict[str, float]:
    """The measures of giving the input back unchanged with no words (editing tasks only)."""
    edits = [t for t in tasks if t.before is not None]
    return _means([Answer(0, t, "", t.check(t.source.picture(), "")) for t in edits])


def tokenizer_parse_rate(model: Model, tasks: Sequence[AnyTask[Any]]) -> float:
    """Share of results of which all is read back right through encoder and decoder."""
    from ..mmp_core.image.pictures import to_pil, to_pixels

    tokenizer, right = model.image_tokenizer, 0
    for task in tasks:
        pixels = to_pixels(task.after.picture(), tokenizer.pixel_range).to(model.device)
        picture = to_pil(tokenizer.decode(tokenizer.encode(pixels)), tokenizer.pixel_range)[0]
        right += task.shown_by(picture)
    return right / len(tasks)


def evaluate(model: Model, *, cases: int = 500, **options: Any) -> dict[str, Any]:
    """:func:`judge` over the first ``cases`` held-out tasks of the toy world."""
    return judge(model, held_out(cases), **options)


def judge(
    model: Model,
    tasks: Sequence[AnyTask[Any]],
    *,
    seed: int = 0,
    repeats: int = 1,
    settings: SamplerSettings | None = None,
    batch: int = 16,
    clip: ClipScorer | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> dict[str, Any]:
    """Measures over ``tasks``, each with its 95 % interval, in all and by kind.

    ``picture``: edited picture right; ``sentence``: result sentence right; ``agree``: text and
    picture agree; ``kept``: untouched cells kept (see :class:`Verdict`); ``words``: length of the
    text; ``clip``: similarity of text and picture, where a scorer is given. ``distinct``: share of
    sentences that no other answer of the same repeat gives. ``copying``: the same of giving the
    input back. ``repeats``: every task is answered so many times, with seeds of its own, and
    ``by_repeat`` tells each apart; the interval is that of the mean over tasks, answers to one
    task being no independent ones. ``progress(done, all)`` is called after each answer.
    """
    cases, began = len(tasks), time.perf_counter()
    settings = settings or SamplerSettings()
    rounds: list[list[Answer]] = []
    for repeat in range(repeats):
        rounds.append([])
        first = seed + repeat * cases
        for one in answer(model, tasks, settings, seed=first, batch=batch, clip=clip):
            rounds[-1].append(one)
            if progress is not None:
                progress(repeat * cases + len(rounds[-1]), repeats * cases)
    seconds = time.perf_counter() - began
    answers = [one for answers in rounds for one in answers]
    kinds = {k: [a for a in answers if a.task.kind == k] for k in tasks[0].kinds()}
    measured = {
        "cases": cases,
        "seed": seed,
        "seconds_per_case": seconds / (cases * repeats),
        "tokenizer_parse": tokenizer_parse_rate(model, tasks[:200]),
        **_means(answers),
        "distinct": sum(map(_distinct, rounds)) / repeats,
        "interval": _intervals(answers),
        "copying": copying(tasks),
        "kinds": {k: {"cases": len(v), **_means(v)} for k, v in kinds.items() if v},
    }
    if repeats > 1:
        measured["by_repeat"] = [_means(answers) for answers in rounds]
    return measured


def _means(answers: Sequence[Answer]) -> dict[str, float]:
    measures = [answer.measures() for answer in answers]
    return {m: sum(one[m] for one in measures) / len(measures) for m in measures[0]}


def _distinct(answers: Sequence[Answer]) -> float:
    counts = Counter(one.sentence for one in answers)
    return sum(n == 1 for n in counts.values()) / len(answers)


def _intervals(answers: Sequence[Answer]) -> dict[str, float]:
    """Half widths of the 95 % intervals of the means over cases (normal approximation)."""
    by_case = defaultdict(list)
    for one in answers:
        by_case[one.number].append(one)
    means = [_means(answers) for answers in by_case.values()]
    values = torch.tensor([list(mean.values()) for mean in means], dtype=torch.float64)
    widths = 1.96 * values.std(dim=0, correction=0).clamp_min(1e-6) / math.sqrt(len(means))
    return dict(zip(means[0], widths.tolist(), strict=True))

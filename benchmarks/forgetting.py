"""Teach the demo checkpoint a word, and see by held-out and guard items when it forgets others.

``python -m mmada_parallel.benchmarks.forgetting --out FILE`` writes JSON, part by part. 60 pairs
name an object by a word that the model has never seen; a fifth of them is held out. Beside the
losses, the adapter kept as best and the last one are judged by the exact checker: on new tasks with
the word, and on ordinary ones.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.benchmarks.measure import Report, parser_of
from mmada_parallel.demo import new_word, world
from mmada_parallel.demo.checker import check
from mmada_parallel.demo.dataset import HELD_OUT, cases_of
from mmada_parallel.demo.evaluate import judge
from mmada_parallel.demo.tasks import Task
from mmada_parallel.mmp_core import (
    Model,
    Prompt,
    SamplerSettings,
    decode_image,
    denoise,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.adapters import build_adapter, read_adapter
from mmada_parallel.training.data.dataset import tokenised
from mmada_parallel.training.data.guard import guard_of
from mmada_parallel.training.loop.curves import Measured, best_of, forgotten, verdict
from mmada_parallel.training.loop.keeping import BEST
from mmada_parallel.training.loop.watch import Watched
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import LoRA

PAIRS = 60
ARMS = {
    "1e-3": (1e-3, 60, 10, 0.0),
    "5e-4": (5e-4, 200, 20, 0.0),
    "5e-5": (5e-5, 200, 20, 0.0),
    "1e-3, rehearsal": (1e-3, 60, 10, 0.25),
    "5e-4, rehearsal": (5e-4, 200, 20, 0.25),
}
"""Learning rate, steps, steps between two measurements, and the share of guard items trained on."""
_OTHERS = HELD_OUT + 3 * 10**8


def train(model: Model, arm: str, seed: int, folder: Path, judged: int) -> dict[str, Any]:
    rate, steps, every, rehearsal = ARMS[arm]
    guard = guard_of(world_checkpoint(model))
    assert guard is not None
    cases = cases_of(model, [_task(1000 * seed + number) for number in range(PAIRS)])
    settings = SFTSettings(
        steps=steps,
        learning_rate=rate,
        held_out=0.2,
        rehearsal=rehearsal,
        evaluate_every=every,
        gradient_checkpointing=False,
        seed=seed,
    )
    watched = Watched(guard=tokenised(guard, model, need_target=True).cases)
    with LoRA(model.transformer, rank=16, seed=seed) as policy:
        run = SFTRun(model, cases, settings, folder, policy=policy, watched=watched)
        lines: list[str] = []
        run.train(
            lambda step, metrics: (
                lines.append(f"after {step}: {verdict(run.watch.measured, settings.guard_rise)}")
                if "guard_loss" in metrics
                else None
            )
        )
        result = {
            "measured": [asdict(each) for each in run.watch.measured],
            "said": lines,
            "last_judged": _judged(model, seed, judged),
        }
        best = run.watch.best
    if best is not None and judged:
        state, about = read_adapter(folder / BEST)
        attached = build_adapter(model, state, about, BEST).attach(model.transformer)
        result["best_judged"] = _judged(model, seed, judged)
        attached.remove()
    return result


def _task(number: int) -> Task:
    return new_word.task(number, new_word.UNKNOWN)


def summary(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each run: when it was first said to forget, and the losses of the best and the last."""
    rise, lines = SFTSettings().guard_rise, {}
    for name, result in results.items():
        if "seed" in name:
            measured = [Measured(**each) for each in result["measured"]]
            best = best_of(measured, rise)
            lines[name] = {
                "forgets_at": next(
                    (m.step for m in measured if forgotten(measured[0], m, rise)), None
                ),
                "start": asdict(measured[0]),
                "best": best and asdict(best),
                "last": asdict(measured[-1]),
            }
    return lines


def world_checkpoint(model: Model) -> Path:
    assert model.place is not None
    return model.place


def _judged(model: Model, seed: int, count: int) -> dict[str, Any]:
    """Shares of right answers on ``count`` new tasks with the word and as many ordinary ones."""
    if not count:
        return {}
    word = [_task(10**6 + 1000 * seed + number) for number in range(count)]
    other = judge(model, [world.task(_OTHERS + number) for number in range(count)], batch=25)
    return {
        "word": _word_measures(model, word),
        "other": {each: other[each] for each in ("picture", "sentence", "agree")},
    }


def _word_measures(model: Model, tasks: Sequence[Task]) -> dict[str, float]:
    """The checker cannot read the word, so that a sentence is right where its tokens are."""
    right, groups = {"picture": 0, "sentence": 0}, defaultdict[Any, list[int]](list)
    cases = cases_of(model, tasks)
    for number, case in enumerate(cases):
        groups[case.prompt.instruction.shape].append(number)
    for numbers in groups.values():
        prompt = Prompt.stack([cases[number].prompt for number in numbers])
        final = denoise(model, prompt, SamplerSettings(seed=numbers), record=0).final
        for row, (number, picture) in enumerate(
            zip(numbers, decode_image(model, final), strict=True)
        ):
            target = cases[number].needed_target()
            right["picture"] += check(tasks[number], picture, "").picture
            right["sentence"] += bool((final.text[row] == target.text[0]).all())
    return {name: count / len(tasks) for name, count in right.items()}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--judged", type=int, default=100, help="tasks to judge of each kind")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=["1e-3", "5e-4"])
    parser.add_argument("--summarise", action="store_true", help="only what --out holds already")
    args = parser.parse_args()
    if args.summarise:
        report = Report(args.out, float("inf"), json.loads(args.out.read_text()))
        report.part("summary", 0, lambda: summary(report.results))
        return
    model = load_checkpoint("demo", dtype=torch.float32)
    report = Report(args.out, float("inf"))
    report.part("before", 0, lambda: _judged(model, 0, args.judged))
    for arm in args.arms:
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as folder:
                report.part(
                    f"{arm}, seed {seed}",
                    0,
                    lambda arm=arm, seed=seed, folder=folder: train(
                        model, arm, seed, Path(folder), args.judged
                    ),
                )
    report.part("summary", 0, lambda: summary(report.results))


if __name__ == "__main__":
    main()

"""Times of the published accelerations at a larger size, on the demo's schedules.

``python -m mmada_parallel.benchmarks.peers_replay FILE [--preset mid] [--tasks 5] [--threads 1]``
runs every method of ``peers`` on held-out tasks of the demo and notes what share of text and
picture each step predicts and unmasks. A model with random weights in a larger shape then runs the
same method on the same schedule, since confidences of random weights mean nothing: each step
unmasks the same shares, whatever they are, and the method's cache decides what is computed. Equal
schedules are timed once. It writes FILE after each and continues from it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmada_parallel.benchmarks.flops import FlopCounter
from mmada_parallel.benchmarks.measure import name_of, parser_of
from mmada_parallel.benchmarks.peers import (
    METHODS,
    of_method,
    operations,
    policies_of,
    settings_of,
)
from mmada_parallel.benchmarks.sampler import PRESETS, ours
from mmada_parallel.benchmarks.shapes import RandomModel
from mmada_parallel.demo.evaluate import held_out, prompt_of
from mmada_parallel.mmp_core import Prompt, denoise, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.mmp_core.sampler.plan import Plan, StepTargets, Targets
from mmada_parallel.mmp_core.sampler.positions import MaskedPositions, seeded_generators
from mmada_parallel.mmp_core.sampler.schedule import PlannedStep
from mmada_parallel.mmp_core.sampler.selection import CorrectedSelection
from mmada_parallel.mmp_core.state import MASKED, Step
from torch import Tensor

RATIOS = {"seconds": "time_ratio", "cpu_seconds": "cpu_time_ratio", "gflop": "flop_ratio"}


class Left(NamedTuple):
    """Shares (0 … 1) of text and picture that are still masked after a step; ``None`` for a
    modality that it does not predict."""

    text: float | None
    image: float | None


Schedule = tuple[Left, ...]


@dataclass(frozen=True)
class ReplayPlan(Plan):
    """Predicts all that is masked of what ``schedule`` says, and unmasks down to its shares."""

    schedule: Schedule = ()

    @classmethod
    def of_schedule(cls, schedule: Schedule) -> ReplayPlan:
        return cls((PlannedStep(),) * len(schedule), {}, schedule)

    def targets(self, index: int, last: Step) -> StepTargets:
        left = self.schedule[index]
        text = self._down_to(last.after.text, left.text)
        image = self._down_to(last.after.image.flatten(1), left.image)
        if text:
            text = replace(text, count=text.positions.valid.sum(dim=1) - text.count)
        return StepTargets(text, image, last, (None, None))

    def _down_to(self, tokens: Tensor, share: float | None) -> Targets | None:
        """``count``: how many stay masked."""
        masked = (tokens == MASKED).sum(dim=1)
        if share is None or not masked.any():
            return None
        stay = torch.full_like(masked, round(share * tokens.shape[1])).minimum(masked)
        return Targets(MaskedPositions.of(tokens, None, masked), stay)


@dataclass(frozen=True)
class Watched(Plan):
    """A plan that notes in ``asked`` whether each step predicts text and picture."""

    plan: Plan
    asked: list[tuple[bool, bool]] = field(default_factory=list)

    @classmethod
    def over(cls, plan: Plan) -> Watched:
        return cls(plan.steps, plan.counts, plan)

    def targets(self, index: int, last: Step) -> StepTargets:
        targets = self.plan.targets(index, last)
        self.asked.append((targets.text is not None, targets.image is not None))
        return targets


def schedule_of(model: Model, prompt: Prompt, name: str) -> Schedule:
    """What ``name`` does to ``prompt`` when; steps that run nothing are left out."""
    model = of_method(model, name)
    policies = policies_of(model, prompt, name)
    watched = Watched.over(policies.plan)
    policies = replace(policies, plan=watched)
    steps = denoise(model, prompt, settings_of(name), policies=policies).steps
    lefts = []
    for (text, image), step in zip(watched.asked, steps, strict=True):
        after = step.after
        lefts.append(Left(left(after.text) if text else None, left(after.image) if image else None))
    return tuple(each for each in lefts if each != Left(None, None))


def left(tokens: Tensor) -> float:
    return round(float((tokens == MASKED).float().mean()), 6)


def replay(
    model: RandomModel, work: FlopCounter, prompt: Prompt, name: str, schedule: Schedule
) -> dict[str, float]:
    """What ``name`` takes on ``schedule``."""
    model, settings = of_method(model, name), settings_of(name)
    plan = ReplayPlan.of_schedule(schedule)
    policies = policies_of(model, prompt, name, plan)
    selection = CorrectedSelection(settings, seeded_generators([0] * prompt.batch, model.device))
    policies = replace(policies, plan=plan, selection=selection)
    work.reset()
    began, processor = time.perf_counter(), time.process_time()
    final = denoise(model, prompt, settings, policies=policies, record=0).final
    taken = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - processor,
        "gflop": operations(model, work) / 1e9,
        "forwards": work.forwards,
    }
    if any((tokens == MASKED).any() for tokens in (final.text, final.image)):
        raise RuntimeError(f"{name} left something masked")
    return taken


def measure(preset: str, tasks: int, file: Path) -> Iterator[dict[str, Any]]:
    """The results so far, each time that a schedule is done."""
    results: dict[str, Any] = {"runs": {}}
    if file.exists():
        results = json.loads(file.read_text(encoding="utf-8"))
    demo, cpu = load_checkpoint("demo", dtype=torch.float32), torch.device("cpu")
    model = ours(PRESETS[preset], cpu)
    prompt = model.prompt(PRESETS[preset]["grid"], PRESETS[preset]["text"])
    work = FlopCounter(model.transformer)
    prompts = [prompt_of(demo, task) for task in held_out(tasks)]
    for name in METHODS:
        found = Counter(schedule_of(demo, each, name) for each in prompts)
        runs = results["runs"].setdefault(name, [])
        for schedule, count in list(found.items())[len(runs) :]:
            runs.append({"tasks": count, **replay(model, work, prompt, name, schedule)})
            yield results | {"summary": summary(results["runs"])}


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the tasks, and ratios to ``exact``."""
    means: dict[str, dict[str, float]] = {}
    for name, own in runs.items():
        tasks = sum(run["tasks"] for run in own)
        means[name] = {
            key: sum(run["tasks"] * run[key] for run in own) / tasks
            for key in ("seconds", "cpu_seconds", "gflop", "forwards")
        }
        for key, ratio in RATIOS.items():
            means[name][ratio] = means["exact"][key] / means[name][key]
    return means


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="mid")
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    command = f"python -m mmada_parallel.benchmarks.peers_replay FILE --preset {args.preset}"
    about = {
        "command": f"{command} --tasks {args.tasks} --threads {args.threads}",
        "machine": f"{name_of(torch.device('cpu'))}, torch {torch.__version__}, fp32",
        "date": date.today().isoformat(),
        "preset": PRESETS[args.preset],
    }
    for results in measure(args.preset, args.tasks, args.file):
        with replacing(args.file) as whole:
            whole.write_text(json.dumps(about | results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

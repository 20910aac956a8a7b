"""What ParaRL does to the toy world's model: an experiment of one command.

``python -m mmada_parallel.benchmarks.pararl`` first finetunes the shipped checkpoint on the toy
world's open tasks ("start": the SFT model), each of which has several right answers. Its text and
its picture, sampled at the same time, then often describe different ones. LoRA adapters are trained
from it with the reward of the final pair alone ("output"), and with rewards along the trajectory at
1, 2, 3 and 4 steps, in equally many steps and with equally many calls of the reward. One more arm
("output, fewer") has as many rollouts as "3 steps", and so a third of the calls. Every arm and seed
is judged on held-out tasks as it was rolled out; some also with text before picture, with the
sampler's defaults, and on ordinary tasks. What is done is kept in ``--folder``, and a second call
goes on; ``pararl_report`` sums it up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.demo import evaluate, open_tasks, world
from mmada_parallel.demo.dataset import HELD_OUT, cases_of
from mmada_parallel.demo.reward import CheckerReward
from mmada_parallel.mmp_core import Model, SamplerSettings, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.load import DEMO
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.training.loop.run import TrainingRun
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.rewards.clip import DEMO_CLIP, ClipScorer
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import FullWeights, LoRA
from torch import Tensor


class Arm(NamedTuple):
    """``groups``: prompts per training step. ``steps``: of each rollout, that are trained, and
    scored unless ``reward_at`` is "output"."""

    groups: int
    steps: int
    reward_at: Literal["trajectory", "output"] = "trajectory"


ARMS = {
    "output": Arm(12, 3, "output"),
    "output, fewer": Arm(4, 3, "output"),
    "1 step": Arm(12, 1),
    "2 steps": Arm(6, 2),
    "3 steps": Arm(4, 3),
    "4 steps": Arm(3, 4),
}
ROLLOUTS = SamplerSettings(text_steps=8, image_steps=8, text_temperature=1.0, joint_guidance=0.0)
CONDITIONS = {
    "as trained": (open_tasks.task, ROLLOUTS),
    "text first": (open_tasks.task, replace(ROLLOUTS, order="text_first")),
    "defaults": (open_tasks.task, SamplerSettings()),
    "ordinary tasks": (world.task, ROLLOUTS),
}
WIDELY = ("start", "output", "3 steps")
"""Judged under all conditions; others only as trained."""
SIZE, RANK, RATE = 8, 16, 8e-4
SEEDS = (1, 2, 3)
TASKS = 2000
"""Open tasks to train by rewards on. SFT has twice as many, and as many ordinary ones."""
VARIETY = (64, 8)
"""Held-out tasks, and answers to each, that tell how much answers vary."""


@dataclass(frozen=True)
class Work:
    """What all jobs share. ``tuning``, ``steps``: of SFT, and by rewards. ``cases``: held-out tasks
    that everything is judged on."""

    folder: Path
    tuning: int
    steps: int
    cases: int


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/pararl"))
    parser.add_argument("--tuning", type=int, default=400, help="steps of SFT on the open tasks")
    parser.add_argument("--steps", type=int, default=48, help="by rewards, per arm and seed")
    parser.add_argument("--cases", type=int, default=500, help="held out, to judge by")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    work = Work(args.folder, args.tuning, args.steps, args.cases)
    print(tune(work), flush=True)
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        for stage in (trainings(work, args.arms), judgements(work, args.arms)):
            for job in [pool.submit(*call) for call in stage]:
                print(job.result(), flush=True)


def tune(work: Work) -> str:
    """SFT of all weights, two open tasks to an ordinary one: the start of all arms."""
    model = load_checkpoint(DEMO, dtype=torch.float32)
    tasks = [(open_tasks.task if i % 3 else world.task)(i) for i in range(3 * TASKS)]
    settings = SFTSettings(
        steps=work.tuning,
        learning_rate=5e-4,
        schedule="linear",
        batch_size=64,
        micro_batch=64,
        gradient_checkpointing=False,
    )
    policy = FullWeights(model.transformer)
    run = SFTRun(model, cases_of(model, tasks), settings, work.folder / "start", policy=policy)
    return run_to_end(run)


def run_to_end(run: TrainingRun) -> str:
    run.resume()
    began, first = time.perf_counter(), run.step
    run.train()
    seconds = (time.perf_counter() - began) / max(1, run.step - first)
    return f"{run.folder.path.name}: {run.step} steps, {seconds:.1f} s each"


def load(folder: Path) -> Model:
    """The start."""
    torch.set_num_threads(1)
    model = load_checkpoint(DEMO, dtype=torch.float32)
    model.transformer.load_state_dict(trained(folder / "start"))
    return model


def trained(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "run.pt", weights_only=True)["policy"]


def trainings(work: Work, arms: list[str]) -> Iterator[tuple[Callable, ...]]:
    yield from ((train, work, arm, seed) for seed, arm in product(SEEDS, arms))


def settings_of(arm: Arm, steps: int, seed: int) -> ParaRLSettings:
    return ParaRLSettings(
        steps=steps,
        groups=arm.groups,
        group_size=SIZE,
        scored_steps=arm.steps,
        reward_at=arm.reward_at,
        learning_rate=RATE,
        schedule="linear",
        warmup_steps=5,
        micro_batch=48,
        gradient_checkpointing=False,
        checkpoint_every=10,
        sampler=ROLLOUTS,
        seed=seed,
    )


def train(work: Work, arm: str, seed: int) -> str:
    model = load(work.folder)
    cases = cases_of(model, map(open_tasks.task, range(TASKS)))
    policy = LoRA(model.transformer, rank=RANK, seed=seed)
    settings = settings_of(ARMS[arm], work.steps, seed)
    folder = run_folder(work.folder, arm, seed)
    return run_to_end(ParaRLRun(model, cases, CheckerReward(), settings, folder, policy=policy))


def put_on(model: Model, folder: Path, arm: str, seed: int) -> None:
    """Attach what was trained."""
    LoRA(model.transformer, rank=RANK).load_state_dict(trained(run_folder(folder, arm, seed)))


def judgements(work: Work, arms: list[str]) -> Iterator[tuple[Callable, ...]]:
    """The most wanted first."""
    for name, arm, seed in product(CONDITIONS, ("start", *arms), SEEDS):
        if name == "as trained" or arm in WIDELY:
            yield judge, work, arm, seed, name


def judge(work: Work, arm: str, seed: int, condition: str) -> str:
    """The measures of one trained model (or the start); answers use seeds of the run's own."""
    file = judged_file(work.folder, arm, seed, condition)
    if not file.exists():
        model, (task, settings) = load(work.folder), CONDITIONS[condition]
        if arm != "start":
            put_on(model, work.folder, arm, seed)
        tasks = [task(HELD_OUT + number) for number in range(work.cases)]
        results = evaluate.judge(
            model, tasks, seed=seed * 10**6, settings=settings, batch=64, clip=ClipScorer(DEMO_CLIP)
        )
        if arm in WIDELY and condition == "as trained":
            results["variety"] = variety(model, seed)
        write(file, results)
    results = json.loads(file.read_text())
    shown = ", ".join(f"{name} {results[name]:.3f}" for name in ("picture", "sentence", "agree"))
    return f"{file.stem}: {shown}"


def variety(model: Model, seed: int) -> float:
    """Different sentences, right or not, among the answers to one open task, as a share of its
    answers or of its right results, whichever are fewer: the mean over tasks."""
    count, repeats = VARIETY
    tasks = [open_tasks.task(HELD_OUT + number) for number in range(count)]
    said = [set() for _ in tasks]
    for repeat in range(repeats):
        first = seed * 10**6 + (repeat + 1) * 10**5
        for one in evaluate.answer(model, tasks, ROLLOUTS, seed=first, batch=64):
            said[one.number].add(one.sentence)
    most = [min(repeats, 1 + len(task.others)) for task in tasks]
    return sum(min(1.0, len(s) / m) for s, m in zip(said, most, strict=True)) / count


def run_folder(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"{arm}, seed {seed}"


def judged_file(folder: Path, arm: str, seed: int, condition: str) -> Path:
    return folder / "judged" / f"{arm}, seed {seed}, {condition}.json"


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as path:
        path.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()

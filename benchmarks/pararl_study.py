"""Does ParaRL help where people sample? A study over independent starts, one file for each run.

``python -m mmada_parallel.benchmarks.pararl_study run ARM START SEED`` makes one run (again): the
shipped checkpoint is finetuned on the toy world's open tasks with SFT seed START, unless that start
is there already; an adapter is trained from it by ARM with seed SEED; and both are judged on the
same held-out tasks with the same seeds of the answers, under its ``CONDITIONS``; a run that lacks
some of these is judged under them when it is asked for again. SFT is in float32; afterwards
the base is in bfloat16 and the adapter in float32, as people train, which takes half the time here.
``all`` makes every run that is missing, the most wanted first, ``--processes`` at a time.
``--method`` takes one set of settings for every arm, for starts 0, 3 and 7 alone, which are never
reported. ``pararl_report`` sums the files up.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from mmada_parallel.demo import evaluate, open_tasks, world
from mmada_parallel.demo.dataset import HELD_OUT, cases_of
from mmada_parallel.demo.reward import CheckerReward
from mmada_parallel.demo.train import has_matrix_units
from mmada_parallel.mmp_core import Model, SamplerSettings, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.load import DEMO
from mmada_parallel.mmp_core.errors import InputError
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import FullWeights, LoRA

TUNING_STARTS, STARTS, SEEDS = (0, 3, 7), (11, 12, 13, 14, 15), (1, 2)
"""SFT seeds to choose settings on, and those that are reported; training seeds of each."""
RESULTS = Path(__file__).with_name("results") / "pararl"
TASKS = 2000
"""Open tasks to train by rewards on. SFT has twice as many, and as many ordinary ones."""
MEASURES = ("agree", "picture", "sentence", "kept")
DEFAULT = SamplerSettings()
CONDITIONS: dict[str, SamplerSettings | None] = {
    "default": DEFAULT,
    "trained": None,
    "unguided": replace(DEFAULT, joint_guidance=0.0),
    "text first": replace(DEFAULT, order="text_first"),
}
"""How the judged answers are sampled; None: as the rollouts of the method."""
Arm = Literal[
    "none",
    "trajectory",
    "trajectory, 48 steps",
    "output",
    "output, equal calls",
    "s = 1",
    "s = 2",
    "s = 3",
    "s = 4",
]
ARMS: tuple[Arm, ...] = get_args(Arm)
"""The start itself; rewards along the trajectory, of the longer and of the shorter training; all
others in the shorter one: rewards of the final pair alone, with as many rollouts, and with as many
calls of the reward as the paper makes; and the paper's own rule (its Eq. 3) at s steps."""
PAPER_CALLS = 3
"""Of the reward per rollout, in the paper (s = 3)."""
JUDGED: dict[str, tuple[Arm, ...]] = {
    "unguided": ("none", "trajectory, 48 steps"),
    "text first": ("none",),
}
"""Conditions of some arms only."""


@dataclass(frozen=True)
class Method:
    """What may be tuned. ``sampler``: of the rollouts. ``along``: what the reward along their
    trajectories judges steps by. ``scored``: steps of each that are trained. ``groups``: prompts
    per step. ``sft_steps``: of a start."""

    sampler: SamplerSettings
    along: Literal["trajectory", "gain"] = "trajectory"
    groups: int = 4
    group_size: int = 8
    scored: int = 3
    steps: int = 48
    rate: float = 8e-4
    kl: float = 1e-4
    rank: int = 16
    sft_steps: int = 400


FEW = SamplerSettings(text_steps=8, image_steps=8, text_temperature=1.0, joint_guidance=0.0)
GUIDED = replace(FEW, joint_guidance=3.5)
METHODS = {
    "unguided": Method(FEW),
    "guided": Method(GUIDED),
    "guided, 8 groups": Method(GUIDED, groups=8),
    "gain": Method(GUIDED, "gain", scored=8),
    "gain, longer": Method(GUIDED, "gain", scored=8, steps=120, rate=6e-4, kl=0.05),
    "gain, three times the rate": Method(GUIDED, "gain", scored=8, rate=2.4e-3),
}
FROZEN: dict[Arm, str] = dict.fromkeys(ARMS, "gain") | {"trajectory": "gain, longer"}
"""The methods of the reported runs: "gain" was the first; "gain, longer" followed its result."""


@dataclass(frozen=True)
class Work:
    """``folder``: of what is trained. ``results``: of the files. ``method``: of every arm; None:
    the frozen ones. ``cases``: held-out tasks judged with all steps, and as rolled out."""

    folder: Path
    results: Path
    method: str | None = None
    cases: tuple[int, int] = (500, 300)

    def file(self, arm: Arm, start: int, seed: int) -> Path:
        name = f"start {start}, {arm}" + (f", seed {seed}" if arm != "none" else "")
        return self.results / f"{name}.json"

    def run_folder(self, arm: Arm, start: int, seed: int) -> Path:
        return self.folder / self.method_of(arm) / f"start {start}, {arm}, seed {seed}"

    def method_of(self, arm: Arm) -> str:
        return self.method or FROZEN[arm]


def settings_of(arm: Arm, method: Method, seed: int) -> ParaRLSettings:
    groups = method.groups * (PAPER_CALLS if arm == "output, equal calls" else 1)
    scored, reward_at = method.scored, "output"
    if arm.startswith("trajectory"):
        reward_at = method.along
    elif arm.startswith("s = "):
        scored, reward_at = int(arm.removeprefix("s = ")), "trajectory"
    return ParaRLSettings(
        steps=method.steps,
        groups=groups,
        group_size=method.group_size,
        scored_steps=scored,
        reward_at=reward_at,
        learning_rate=method.rate,
        kl=method.kl,
        schedule="linear",
        warmup_steps=min(5, method.steps - 1),
        micro_batch=48,
        gradient_checkpointing=False,
        checkpoint_every=10,
        sampler=method.sampler,
        seed=seed,
    )


def run(work: Work, arm: Arm, start: int, seed: int) -> dict[str, Any]:
    """What is written to the run's file, and is returned if the file has all of it."""
    file, result = work.file(arm, start, seed), {}
    if file.is_file():
        result = json.loads(file.read_text(encoding="utf-8"))
    conditions = [each for each in CONDITIONS if arm in JUDGED.get(each, ARMS)]
    missing = [each for each in conditions if each not in result.get("judged", ())]
    if not missing:
        return result
    torch.set_num_threads(1)
    name = work.method_of(arm)
    method, began = METHODS[name], time.perf_counter()
    model = started(work, method, start)
    model.transformer.to(torch.bfloat16)
    training: dict[str, Any] = {}
    if arm != "none":
        policy = LoRA(model.transformer, rank=method.rank, seed=seed)
        cases = cases_of(model, map(open_tasks.task, range(TASKS)))
        settings, folder = settings_of(arm, method, seed), work.run_folder(arm, start, seed)
        training = trained(
            ParaRLRun(model, cases, CheckerReward(), settings, folder, policy=policy)
        )
    result = {
        "command": f"python -m mmada_parallel.benchmarks.pararl_study run {arm!r} {start} {seed}",
        "arm": arm,
        "start": start,
        "seed": None if arm == "none" else seed,
        "method": name,
        "settings": asdict(method),
        "machine": machine(),
        "commit": commit(),
        **training,
        **result,
        "judged": result.get("judged", {}) | judged(model, work, method, start, missing),
        "seconds": round(result.get("seconds", 0) + time.perf_counter() - began),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as path:
        path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return result


def started(work: Work, method: Method, start: int) -> Model:
    """The shipped checkpoint after SFT on open tasks, two to an ordinary one, by seed ``start``."""
    model = load_checkpoint(DEMO, dtype=torch.float32)
    tasks = [(open_tasks.task if i % 3 else world.task)(i) for i in range(3 * TASKS)]
    settings = SFTSettings(
        steps=method.sft_steps,
        learning_rate=5e-4,
        schedule="linear",
        batch_size=64,
        micro_batch=64,
        gradient_checkpointing=False,
        checkpoint_every=50,
        seed=start,
    )
    folder, policy = work.folder / f"start {start}", FullWeights(model.transformer)
    sft = SFTRun(model, cases_of(model, tasks), settings, folder, policy=policy)
    sft.resume()
    sft.train()
    model.transformer.requires_grad_(False)
    return model


def trained(rl: ParaRLRun) -> dict[str, Any]:
    """Train to the end; what is told of it."""
    rl.resume()
    rl.train()
    log = rl.folder.path / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    curves = ("reward_mean", "groups_skipped", "kl", "grad_norm")
    return {
        "reward_calls": lines[-1]["reward_calls"],
        "seconds_per_step": round(statistics.mean(line["seconds"] for line in lines), 2),
        "curves": {name: [line[name] for line in lines] for name in curves},
    }


def judged(
    model: Model, work: Work, method: Method, start: int, conditions: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Measures by condition, 0 … 1. A start's runs answer the same tasks with the same seeds."""
    results = {}
    for name in conditions:
        sampler = CONDITIONS[name]
        count = work.cases[sampler is None]
        tasks = [open_tasks.task(HELD_OUT + number) for number in range(count)]
        first, settings = 10**6 * (start + 1), sampler or method.sampler
        measures = evaluate.judge(model, tasks, seed=first, settings=settings, batch=50)
        results[name] = {"cases": count, **{m: measures[m] for m in (*MEASURES, "distinct")}}
    return results


def machine() -> str:
    """Kinds of processors round differently: from the same seed each gives another start, which is
    judged there, too (``none``), as the base of what is trained from it."""
    kind = "AMX" if has_matrix_units() else torch.backends.cpu.get_cpu_capability()
    version = f"torch {torch.__version__}, one thread, bfloat16"
    return f"{platform.machine()} with {kind}, {version}"


def commit() -> str:
    """Of the code that ran; empty outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def wanted(arms: Sequence[Arm], starts: Sequence[int]) -> Iterator[tuple[Arm, int, int]]:
    """Runs in the order of their worth: the main comparison is whole first."""
    for arm in arms:
        for seed in SEEDS if arm != "none" else SEEDS[:1]:
            yield from ((arm, start, seed) for start in starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/pararl-study"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--method", choices=METHODS)
    does = parser.add_subparsers(dest="do", required=True)
    one = does.add_parser("run")
    one.add_argument("arm", choices=ARMS)
    one.add_argument("start", type=int)
    one.add_argument("seed", type=int)
    every = does.add_parser("all")
    every.add_argument("--arms", nargs="+", choices=ARMS[1:], default=list(ARMS[1:]))
    every.add_argument("--starts", nargs="+", type=int, default=list(STARTS))
    every.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    work = Work(args.folder, args.results, args.method)
    starts = [args.start] if args.do == "run" else args.starts
    if args.method:
        if not set(starts) <= set(TUNING_STARTS):
            raise InputError(f"Settings are tuned on starts {TUNING_STARTS} alone.")
        work = replace(work, results=args.results / "tuning" / args.method)
    if args.do == "run":
        print(json.dumps(run(work, args.arm, args.start, args.seed)["judged"]))
        return
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        for arms in (ARMS[:1], args.arms):  # the starts before what is trained from them
            jobs = {call: pool.submit(run, work, *call) for call in wanted(arms, starts)}
            for call, job in jobs.items():
                print(call, job.result()["judged"], flush=True)


if __name__ == "__main__":
    main()

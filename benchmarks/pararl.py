"""What ParaRL does to the toy world's model: an experiment of one command.

``python -m mmada_parallel.benchmarks.pararl`` trains LoRA adapters from an early checkpoint, whose
texts and pictures do not yet agree too well, on the training tasks that it fails: with the reward
of the final pair alone ("output"), and with rewards along the trajectory at 1, 2, 3 and 4 steps.
All arms may ask the reward equally often. Every arm and seed is judged on held-out tasks as it was
rolled out; some also with text before picture, and with the sampler's defaults. What is done is
kept in ``--folder``, and a second call goes on; ``pararl_report`` sums it up.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.demo import world
from mmada_parallel.demo.cases import cases_of
from mmada_parallel.demo.evaluate import answer, evaluate
from mmada_parallel.demo.reward import CheckerReward
from mmada_parallel.mmp_core import Model, SamplerSettings, load_checkpoint
from mmada_parallel.mmp_core.checkpoint import DEMO
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.training.adapters import LoRA
from mmada_parallel.training.clip_score import DEMO_CLIP, ClipScorer
from mmada_parallel.training.pararl import ParaRLRun, ParaRLSettings

START = "f52adbf"
"""The commit whose demo checkpoint is the start: it saw 384,000 examples, a seventh of what the
shipped one did."""
ROOT = Path(__file__).resolve().parents[1]
ARMS = {"output": 1, "1 step": 1, "2 steps": 2, "3 steps": 3, "4 steps": 4}
"""Arms, and how often each asks the reward per rollout."""
ROLLOUTS = SamplerSettings(text_steps=6, image_steps=6, text_temperature=1.0, joint_guidance=0.0)
CONDITIONS = {
    "as trained": ROLLOUTS,
    "text first": replace(ROLLOUTS, order="text_first"),
    "defaults": SamplerSettings(),
}
WIDELY = ("start", "output", "3 steps")
"""Judged under all conditions; others only as trained."""
OUTPUT_STEPS = 3
"""Steps whose tokens the reward of the final pair trains."""
GROUPS, SIZE, RANK, RATE = 8, 8, 16, 5e-4
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Work:
    """What all jobs share. ``calls``: of the reward, per arm and seed. ``tasks``: training tasks
    that the start is tried on. ``cases``: held-out tasks that everything is judged on."""

    folder: Path
    calls: int
    tasks: int
    cases: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/pararl"))
    parser.add_argument("--calls", type=int, default=9216, help="of the reward, per arm and seed")
    parser.add_argument("--tasks", type=int, default=4000, help="that the start is tried on")
    parser.add_argument("--cases", type=int, default=500, help="held out, to judge by")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    work = Work(args.folder, args.calls, args.tasks, args.cases)
    copy_start(work.folder / "start")
    spawn = get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=spawn) as pool:
        shares = [range(i, work.tasks, args.processes) for i in range(args.processes)]
        list(pool.map(failed_tasks, [work] * len(shares), shares))
        for stage in (trainings(work, args.arms), judgements(work, args.arms)):
            for job in [pool.submit(*call) for call in stage]:
                print(job.result(), flush=True)


def copy_start(folder: Path) -> None:
    """The checkpoint of :data:`START`, taken from the repository's history."""
    if (folder / "model.safetensors").exists():
        return
    shutil.copytree(DEMO, folder, dirs_exist_ok=True, ignore=lambda *_: ["model.safetensors"])
    name = f"{START}:{DEMO.relative_to(ROOT).as_posix()}/model.safetensors"
    found = subprocess.run(["git", "-C", ROOT, "show", name], capture_output=True)
    if found.returncode:
        raise SystemExit(f"{START} is not in this clone's history: fetch it unshallow.")
    with replacing(folder / "model.safetensors") as path:
        path.write_bytes(found.stdout)


def load(folder: Path) -> Model:
    torch.set_num_threads(1)
    return load_checkpoint(folder / "start", dtype=torch.float32)


def failed_tasks(work: Work, numbers: range) -> list[int]:
    """Those of the training tasks ``numbers`` where the start's text and picture disagree."""
    file = work.folder / f"failed-{numbers.start}-{numbers.stop}-{numbers.step}.json"
    if not file.exists():
        tasks = [world.task(number) for number in numbers]
        answers = answer(load(work.folder), tasks, ROLLOUTS, seed=0, batch=64)
        write(file, sorted(numbers[a.number] for a in answers if not a.verdict.agree))
    return json.loads(file.read_text())


def all_failed(folder: Path) -> list[int]:
    files = folder.glob("failed-*.json")
    return sorted(number for file in files for number in json.loads(file.read_text()))


def trainings(work: Work, arms: list[str]) -> Iterator[tuple[Callable, ...]]:
    yield from ((train, work, arm, seed) for seed, arm in product(SEEDS, arms))


def settings_of(arm: str, calls: int, seed: int) -> ParaRLSettings:
    return ParaRLSettings(
        steps=calls // (GROUPS * SIZE * ARMS[arm]),
        groups=GROUPS,
        group_size=SIZE,
        scored_steps=OUTPUT_STEPS if arm == "output" else ARMS[arm],
        reward_at="output" if arm == "output" else "trajectory",
        learning_rate=RATE,
        warmup_steps=5,
        micro_batch=64,
        gradient_checkpointing=False,
        checkpoint_every=10,
        sampler=ROLLOUTS,
        seed=seed,
    )


def train(work: Work, arm: str, seed: int) -> str:
    folder, model = run_folder(work.folder, arm, seed), load(work.folder)
    cases = cases_of(model, map(world.task, all_failed(work.folder)))
    policy = LoRA(model.transformer, rank=RANK, seed=seed)
    settings = settings_of(arm, work.calls, seed)
    run = ParaRLRun(model, cases, CheckerReward(), settings, folder, policy=policy)
    run.resume()
    began, first = time.perf_counter(), run.step
    run.train()
    seconds = (time.perf_counter() - began) / max(1, run.step - first)
    return f"{folder.name}: {run.step} steps, {seconds:.1f} s each"


def put_on(model: Model, folder: Path, arm: str, seed: int) -> None:
    """Attach what was trained."""
    state = torch.load(run_folder(folder, arm, seed) / "run.pt", weights_only=True)
    LoRA(model.transformer, rank=RANK).load_state_dict(state["policy"])


def judgements(work: Work, arms: list[str]) -> Iterator[tuple[Callable, ...]]:
    """The most wanted first."""
    for name, arm, seed in product(CONDITIONS, ("start", *arms), SEEDS):
        if name == "as trained" or arm in WIDELY:
            yield judge, work, arm, seed, name


def judge(work: Work, arm: str, seed: int, condition: str) -> str:
    """The measures of one trained model (or the start); answers use seeds of the run's own."""
    file = judged_file(work.folder, arm, seed, condition)
    if not file.exists():
        model = load(work.folder)
        if arm != "start":
            put_on(model, work.folder, arm, seed)
        found = evaluate(
            model, cases=work.cases, seed=seed * 10**6, settings=CONDITIONS[condition], batch=64,
            clip=ClipScorer(DEMO_CLIP),
        )  # fmt: skip
        write(file, found)
    found = json.loads(file.read_text())
    shown = ", ".join(f"{name} {found[name]:.3f}" for name in ("picture", "sentence", "agree"))
    return f"{file.stem}: {shown}"


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

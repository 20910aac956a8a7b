"""A reward for agreement that is hacked on the toy world, and what edit consistency does about it.

``python -m mmada_parallel.benchmarks.consistency`` trains the shipped checkpoint by ParaRL on edits
that ask to "remove an object", with a judge made to be hacked: "named", the share of image tokens
that hold nothing but what the text names. As with a CLIP, whose score rises when a picture shows
nothing else, the least effort is to erase the rest of the picture. (The exact checker, which the
shipped recipes use, compares with the input and cannot be hacked so.) Arms: "named" alone, and
with consistency, by which one image token of sixteen may change, at a weight of 2. Each is judged
on held-out edits. What is done is kept in ``--folder``; a second call goes on.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.benchmarks.dpo import write
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.demo import open_tasks
from mmada_parallel.demo.checker import check, parse_codes
from mmada_parallel.demo.dataset import HELD_OUT, cases_of
from mmada_parallel.demo.scenes import CONTENTS
from mmada_parallel.demo.tasks import Task
from mmada_parallel.mmp_core import Model, SamplerSettings, load_checkpoint
from mmada_parallel.training.cases import Case, Pair
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.rewards.consistency import ConsistencyReward
from mmada_parallel.training.rewards.weighted import Weighted
from mmada_parallel.training.samples import answers
from mmada_parallel.training.weights.policies import LoRA

ROLLOUTS = SamplerSettings(text_steps=4, image_steps=4, text_temperature=1.0, joint_guidance=0.0)
ARMS = {"named alone": 0.0, "named and consistency": 2.0}
"""The weight of consistency."""
SEEDS = (1, 2)
TASKS, SHARE = 200, 1 / 16
"""To train on; of a picture, that may change."""


def named(pairs: Sequence[Pair]) -> torch.Tensor:
    """The share of image tokens that hold nothing, or an object that the text names."""
    return torch.tensor([_named(pair) for pair in pairs])


def _named(pair: Pair) -> float:
    said = pair.text.split()
    pairs_said = set(pairwise(said))
    codes = parse_codes(pair.picture, pair.case.facts.after.grid) % len(CONTENTS)
    things = [CONTENTS[code] for code in codes.flatten()]
    return statistics.mean(
        float(thing is None or (thing[1], thing[0]) in pairs_said) for thing in things
    )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/consistency"))
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--cases", type=int, default=48, help="held out, to judge by")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"steps": args.steps, "learning rate": args.learning_rate}
    model = load_checkpoint("demo", dtype=torch.float32)
    figures["start"] = judged(model, args.folder / "start.json", args.cases)
    for seed, arm in product(SEEDS, ARMS):
        model = load_checkpoint("demo", dtype=torch.float32)
        train(model, args.folder, arm, seed, args.steps, args.learning_rate)
        file = args.folder / f"{arm}, seed {seed}.json"
        figures.setdefault(arm, {})[seed] = judged(model, file, args.cases)
        write(args.out or args.folder / "consistency.json", figures)
    print(json.dumps(figures, indent=1))


def edits(first: int, count: int) -> list[Task]:
    """Open tasks that ask to remove any one object."""
    tasks = (open_tasks.task(number) for number in range(first, first + 20 * count))
    return [task for task in tasks if task.kind == "remove"][:count]


def cases(model: Model, tasks: Sequence[Task]) -> list[Case]:
    """Without targets, which would tell what may change."""
    return [replace(case, target=None) for case in cases_of(model, tasks)]


def train(model: Model, folder: Path, arm: str, seed: int, steps: int, rate: float) -> None:
    """The adapter stays attached to ``model``."""
    weight = ARMS[arm]
    parts = [(named, 1.0), *([(ConsistencyReward(SHARE), weight)] if weight else [])]
    settings = ParaRLSettings(
        steps=steps,
        groups=3,
        group_size=6,
        scored_steps=2,
        learning_rate=rate,
        schedule="linear",
        warmup_steps=2,
        micro_batch=18,
        gradient_checkpointing=False,
        checkpoint_every=5,
        sampler=ROLLOUTS,
        seed=seed,
    )
    policy = LoRA(model.transformer, rank=16, seed=seed)
    place = folder / f"{arm}, seed {seed}"
    run = ParaRLRun(
        model, cases(model, edits(0, TASKS)), Weighted(parts), settings, place, policy=policy
    )
    run.resume()
    run.train(lambda step, line: print(arm, seed, step, json.dumps(line), flush=True))


def judged(model: Model, file: Path, count: int) -> dict[str, Any]:
    """Means over held-out edits, sampled as the rollouts are, with 95 % intervals over edits."""
    if not file.exists():
        tasks = edits(HELD_OUT, count)
        pairs = answers(model, cases(model, tasks), seed=1, sampler=ROLLOUTS, micro_batch=16)
        verdicts = [check(pair.case.facts, pair.picture, pair.text) for pair in pairs]
        values = {
            "named": named(pairs).tolist(),
            "consistency": ConsistencyReward(SHARE)(pairs).tolist(),
            "untouched cells kept": [verdict.kept for verdict in verdicts],
            "picture right": [float(verdict.picture) for verdict in verdicts],
            "sentence right": [float(verdict.sentence) for verdict in verdicts],
            "objects gone": [float(_gone(pair)) for pair in pairs],
        }
        write(
            file,
            {
                name: {
                    "mean": statistics.mean(each),
                    "interval": 1.96 * statistics.stdev(each) / math.sqrt(len(each)),
                }
                for name, each in values.items()
            },
        )
    return json.loads(file.read_text())


def _gone(pair: Pair) -> int:
    """How many objects fewer than before."""
    task = pair.case.facts
    codes = parse_codes(pair.picture, task.after.grid) % len(CONTENTS)
    return len(task.before.objects()) - int((codes != CONTENTS.index(None)).sum())


if __name__ == "__main__":
    main()

"""What each speed level saves and costs, on held-out edits of the toy world.

``python -m mmada_parallel.benchmarks.speed [--cases 200] [--model demo|PATH]`` prints JSON: per
level the share of pictures and sentences right and agreeing, the FLOPs of all forwards and logits
per case, the seconds per case (of wall time, and of processor time, which a machine shared with
others does not disturb), and the ratios to "exact". One case at a time, as a user runs them.
Besides, for the levels that do not depend on what a model is sure of, the FLOPs of one edit at the
released shape (8B, 512x512), counted on its sequence of tokens.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from mmada_parallel.benchmarks.flops import FlopCounter
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.benchmarks.shapes import RELEASED, TINY, RandomModel
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.evaluate import judge
from mmada_parallel.mmp_core import SamplerSettings, denoise, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.mmp_core.model.config import ModelConfig

LEVELS = ("exact", "cached", "fast", "fastest")
EDITS = {
    "defaults: 128 text, 30 image steps, guidance 3.5": {},
    "128 text, 64 image steps, image guidance 4": {
        "image_steps": 64,
        "joint_guidance": 0.0,
        "image_guidance": 4.0,
    },
}


def measure_levels(model: Model, cases: int) -> dict[str, Any]:
    tasks = [world.task(HELD_OUT + number) for number in range(cases)]
    work = FlopCounter(model.transformer)
    results: dict[str, Any] = {}
    for level in LEVELS:
        work.reset()
        processor = [time.process_time()]
        measured = judge(
            model,
            tasks,
            settings=SamplerSettings(speed=level),
            batch=1,
            progress=lambda done, all_, taken=processor: taken.append(time.process_time()),
        )
        results[level] = {
            **{name: measured[name] for name in ("picture", "sentence", "agree", "interval")},
            "gflop_per_case": work.total / cases / 1e9,
            "forwards_per_case": work.forwards / cases,
            "seconds_per_case": measured["seconds_per_case"],
            "cpu_seconds_per_case": (processor[-1] - processor[0]) / cases,
        }
    ratios = {
        "flop_ratio": "gflop_per_case",
        "time_ratio": "seconds_per_case",
        "cpu_time_ratio": "cpu_seconds_per_case",
    }
    for level in results.values():
        level |= {ratio: results["exact"][of] / level[of] for ratio, of in ratios.items()}
    return results


def released_shape() -> dict[str, Any]:
    """PFLOP of an edit of 512x512 pixels, 256 words and 60 of instruction, by the 8B model."""
    model = RandomModel.of(TINY, torch.device("cpu"), torch.float32)
    work = FlopCounter(model.transformer, ModelConfig(**RELEASED))
    results: dict[str, Any] = {}
    for name, changes in EDITS.items():
        counts = {}
        for level in ("exact", "cached"):
            work.reset()
            denoise(model, model.prompt(32, 256), SamplerSettings(speed=level, **changes), record=0)
            counts[level] = work.total / 1e15
        results[name] = {"pflop": counts, "flop_ratio": counts["exact"] / counts["cached"]}
    return results


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--model", default="demo", metavar="demo|PATH")
    args = parser.parse_args()
    model = load_checkpoint(args.model, dtype=torch.float32)
    results = {
        "cases": args.cases,
        "levels": measure_levels(model, args.cases),
        "released_shape": released_shape(),
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

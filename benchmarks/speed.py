"""What each speed level saves and costs, on held-out edits of the toy world.

``python -m mmada_parallel.benchmarks.speed [--cases 200]`` prints JSON: per level the share of
pictures and sentences right and agreeing, the FLOPs of all forwards per case, the seconds per case,
and the ratios to "exact". One case at a time, as a user runs them.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from mmada_parallel.benchmarks.gpu import forward_flop
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.evaluate import judge
from mmada_parallel.mmp_core import SamplerSettings, load_checkpoint

LEVELS = ("exact", "fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=200)
    cases = parser.parse_args().cases
    model = load_checkpoint("demo", dtype=torch.float32)
    work = {"flop": 0.0, "forwards": 0}

    def count(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        work["forwards"] += 1
        work["flop"] += forward_flop(module.config, inputs[0].numel())

    model.transformer.register_forward_hook(count)
    tasks = [world.task(HELD_OUT + number) for number in range(cases)]
    found: dict[str, Any] = {"cases": cases, "levels": {}}
    for level in LEVELS:
        work.update(flop=0.0, forwards=0)
        began = time.perf_counter()
        measured = judge(model, tasks, settings=SamplerSettings(speed=level), batch=1)
        found["levels"][level] = {
            **{name: measured[name] for name in ("picture", "sentence", "agree", "interval")},
            "gflop_per_case": work["flop"] / cases / 1e9,
            "forwards_per_case": work["forwards"] / cases,
            "seconds_per_case": (time.perf_counter() - began) / cases,
        }
    exact = found["levels"]["exact"]
    for level in found["levels"].values():
        level["flop_ratio"] = exact["gflop_per_case"] / level["gflop_per_case"]
        level["time_ratio"] = exact["seconds_per_case"] / level["seconds_per_case"]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

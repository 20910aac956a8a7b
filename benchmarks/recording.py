"""What recording a trajectory costs: the same run with and without it.

``python -m mmada_parallel.benchmarks.recording [--runs 20]`` prints JSON: both medians of one edit
of the demo, and their ratio.
"""

from __future__ import annotations

import json
import statistics
import time

import torch
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.evaluate import prompt_of
from mmada_parallel.mmp_core import SamplerSettings, denoise, load_checkpoint


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    model = load_checkpoint("demo", dtype=torch.float32)
    task = world.task(HELD_OUT, kinds=("recolour",))
    prompt = prompt_of(model, task)
    times: dict[int, list[float]] = {0: [], 128: []}
    for number in range(runs + 1):
        for record, taken in times.items():
            began = time.perf_counter()
            denoise(model, prompt, SamplerSettings(seed=number), record=record).to("cpu")
            taken.append(time.perf_counter() - began)
    off, on = (statistics.median(taken[1:]) for taken in times.values())
    results = {"seconds_without": off, "seconds_with": on, "ratio": on / off, "runs": runs}
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

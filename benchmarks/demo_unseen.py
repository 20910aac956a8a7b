"""The demo checkpoint on instructions whose very words never occurred in its training.

``python -m mmada_parallel.benchmarks.demo_unseen [--cases 500]`` prints JSON.
"""

from __future__ import annotations

import json
from itertools import count, islice

import torch
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import HELD_OUT, WorldCases
from mmada_parallel.demo.evaluate import judge
from mmada_parallel.mmp_core import load_checkpoint

TRAINED_ON = ((3000 * 128, 128), (1186 * 2048, 16 * 2048))
"""What the shipped checkpoint saw: number of examples, and how many in a row share a grid."""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", type=int, default=500)
    cases = parser.parse_args().cases
    seen = {
        WorldCases.task(i, same_grid).instruction
        for examples, same_grid in TRAINED_ON
        for i in range(examples)
    }
    later = (world.task(HELD_OUT + i) for i in count())
    tasks = list(islice((t for t in later if t.instruction not in seen), cases))
    first = [world.task(HELD_OUT + i).instruction for i in range(cases)]
    share = sum(i not in seen for i in first) / cases
    model = load_checkpoint("demo", dtype=torch.float32)
    results = judge(model, tasks, batch=32)
    print(json.dumps({"unseen_share_of_held_out": share, **results}))


if __name__ == "__main__":
    main()

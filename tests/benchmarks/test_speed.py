"""The speed benchmark on a few edits: every level saves what it is there to save."""

import torch
from mmada_parallel.benchmarks.speed import LEVELS, measure_levels
from mmada_parallel.mmp_core import load_checkpoint


def test_levels_save_and_still_edit():
    found = measure_levels(load_checkpoint("demo", dtype=torch.float32), 4)
    assert tuple(found) == LEVELS
    assert found["exact"]["flop_ratio"] == 1
    assert found["cached"]["flop_ratio"] >= 3
    assert found["cached"]["forwards_per_case"] == found["exact"]["forwards_per_case"]
    assert found["fast"]["forwards_per_case"] < found["exact"]["forwards_per_case"] / 3
    assert found["fastest"]["flop_ratio"] >= found["fast"]["flop_ratio"]
    for level in found.values():
        assert level["picture"] >= 0.75 and level["sentence"] >= 0.75

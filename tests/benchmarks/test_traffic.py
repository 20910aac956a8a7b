"""Bytes counted from shapes."""

import torch
from mmada_parallel.benchmarks import traffic
from mmada_parallel.benchmarks.shapes import RELEASED
from mmada_parallel.mmp_core.model.config import ModelConfig


def test_reads_and_writes_are_counted_once_each():
    x = torch.empty(3, 4, dtype=torch.bfloat16, device="meta")
    assert traffic.counted(lambda: x + x.float()) == {"_to_copy": 72, "add": 120}
    assert traffic.counted(lambda: x.T.unsqueeze(0)) == {}


def test_a_forward_of_the_8b_model():
    """A copy more per forward would show here."""
    measured = traffic.measure(ModelConfig(**RELEASED), traffic.LENGTH)
    rotation = measured["rotation"]
    assert rotation["kernel"] < 2.8 < rotation["torch"] < 0.6 * rotation["torch, with gradients"]
    assert measured["forward"]["with the kernel"] < 66
    weights = 2 * 32 * (4 * 4096**2 + 3 * 4096 * 12288) / 1e9
    assert weights < measured["matrix products"] < 2 * weights

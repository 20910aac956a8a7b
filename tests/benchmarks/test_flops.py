"""FLOPs counted from shapes are those that PyTorch counts as they are run."""

import pytest
import torch
from mmada_parallel.benchmarks.flops import FlopCounter
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import KeyValueCache, MaskedDiffusionTransformer
from mmada_parallel.tests.mmp_core import tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def counted(run):
    """PyTorch's count, attention as two products."""
    with FlopCounterMode(display=False) as mode, sdpa_kernel(SDPBackend.MATH):
        run()
    return mode.get_total_flops()


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_whole_and_partial_forwards_and_logits(kv_heads):
    config = dict(tiny.config("A"), n_heads=4, n_kv_heads=kv_heads)
    transformer = MaskedDiffusionTransformer(ModelConfig.from_dict(config)).requires_grad_(False)
    counter, cache = FlopCounter(transformer), KeyValueCache()
    ids, positions = torch.arange(18).view(2, 9), torch.tensor([[0, 3, 8], [1, 2, 9]])
    whole = counted(lambda: transformer(ids, cache=cache))
    assert (counter.forwards, counter.blocks) == (1, whole)
    part = counted(lambda: transformer(ids, cache=cache, positions=positions))
    assert (counter.forwards, counter.blocks) == (2, whole + part)
    assert part < whole / 2
    head = counted(lambda: transformer.logits(torch.ones(2, 3, 16), slice(2, 9)))
    assert counter.head == head
    counter.reset()
    assert counter.forwards == counter.blocks == counter.head == 0

"""ComfyUI's attention as the core calls it: fewer queries than keys, and keys that are views."""

import pytest
import torch
from mmada_parallel.mmp_core.model.transformer import sdpa_attention

FUNCTIONS = ("attention_basic", "attention_sub_quad", "attention_split", "attention_pytorch")


@pytest.fixture(params=FUNCTIONS)
def attention(request, host, monkeypatch):
    """The host's attention for a GPU, by one of ComfyUI's implementations."""
    from comfy.ldm.modules import attention as implementations

    monkeypatch.setattr(
        implementations, "optimized_attention", getattr(implementations, request.param)
    )
    return host.layers.attention(torch.device("cuda"))


@pytest.mark.parametrize("queries", [1, 5, 11])
def test_fewer_queries_than_keys(attention, queries):
    torch.manual_seed(0)
    q, kept = torch.randn(2, 3, queries, 8), torch.randn(2, 2, 3, 12, 8)
    k, v = kept[:, :, :, :-1]
    torch.testing.assert_close(attention(q, k, v), sdpa_attention(q, k, v), rtol=1e-4, atol=1e-5)

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


@pytest.mark.parametrize("queries", [3, 1024, 2500])
def test_a_cpu_can_be_interrupted_between_parts_of_a_long_one(host, monkeypatch, queries):
    asked = []
    monkeypatch.setattr(host.page, "stop_if_interrupted", lambda: asked.append(None))
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, queries, 8), torch.randn(2, 2, 2600, 8), torch.randn(2, 2, 2600, 8)
    ours = host.layers.attention(torch.device("cpu"))(q, k, v)
    assert torch.equal(ours, sdpa_attention(q, k, v))
    assert len(asked) == -(-queries // 1024)

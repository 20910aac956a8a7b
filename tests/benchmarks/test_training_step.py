"""A step of SFT beside one of peft and transformers: the same shapes, both train."""

import pytest
import torch
from mmada_parallel.benchmarks import training_step
from mmada_parallel.benchmarks.shapes import RandomModel

TINY = {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 48, "grid": 2, "text": 6}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(training_step.PRESETS, "small", TINY)


def test_ours_computes_the_logits_of_masked_tokens_alone():
    results = training_step.compare("small", 1)
    sequence, rows = results["sequence"], {}
    head = 2 * 2 * TINY["d_model"] * sequence["vocabulary"]  # forward, and backward to the input
    for name in ("ours", "peft"):
        rows[name] = results[name]["flop"] / head
        assert results[name]["cpu_seconds"].keys() == set(training_step.PARTS)
    assert 0 < rows["ours"] - sequence["masked"] < 2  # the rest are the blocks
    assert 0 < rows["peft"] - sequence["tokens"] < 2
    assert results["flop_ratio"] == rows["peft"] / rows["ours"] > 3


@pytest.mark.parametrize("side", [training_step.ours, training_step.theirs])
def test_both_train_their_adapters_alone(side):
    sizes, grid, text = training_step.shapes("small")
    model = RandomModel.of(sizes, torch.device("cpu"), torch.float32)
    loss, weights = side(model, training_step.batch_of(model, grid, text))
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    training_step.timed(loss, optimizer)
    training_step.timed(loss, optimizer)
    assert len(weights) == 2 * 7  # A and B of each linear layer of one block
    assert not any(torch.equal(*pair) for pair in zip(before, weights, strict=True))

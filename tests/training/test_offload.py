"""Training with the frozen weights in host memory: the same bits, and one layer on the device."""

from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core.model.lora import adaptable_layers
from mmada_parallel.tests.live_bytes import most_bytes
from mmada_parallel.tests.mmp_core.test_memory import RELEASED, adapter_parameters
from mmada_parallel.tests.training.adapted import quantised
from mmada_parallel.tests.training.test_sft_run import SETTINGS, with_targets
from mmada_parallel.tests.training.tiny_cases import QUICK, new_run, state_of, tiny_model
from mmada_parallel.training.loop.memory import update_bytes
from mmada_parallel.training.sft.loss import logits_at_once
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.weights import offload as module
from mmada_parallel.training.weights.offload import offload, streamed_bytes
from mmada_parallel.training.weights.policies import LoRA

AGAIN = replace(SETTINGS, gradient_checkpointing=True)


@pytest.fixture
def elsewhere(monkeypatch):
    """Layers are copied as if the device were another one."""
    monkeypatch.setattr(module, "copied", lambda tensor, device: tensor.clone())


def sft(model, folder, steps=3, **options):
    policy = LoRA(model.transformer, rank=2, **options)
    settings = replace(AGAIN, steps=steps)
    return SFTRun(model, with_targets(model), settings, folder, policy=policy)


@pytest.mark.parametrize("kind", ["plain", "int8", "fp8", "dora"])
def test_losses_and_weights_are_the_same_bits(kind, tmp_path, elsewhere):
    seen = []
    for streamed in (False, True):
        model = tiny_model(tmp_path / f"model {streamed}")
        if kind in ("int8", "fp8"):
            quantised(model.transformer, kind)
        if streamed:
            offload(model.transformer, "cpu")
        run, lines = sft(model, tmp_path / f"run {streamed}", dora=kind == "dora"), []
        run.train(lambda _, line, lines=lines: lines.append((line["loss"], line["grad_norm"])))
        seen.append((lines, state_of(run)))
    assert seen[0][0] == seen[1][0]
    assert all(torch.equal(value, seen[1][1][name]) for name, value in seen[0][1].items())


def test_rollouts_and_updates_of_pararl_are_the_same(tmp_path, elsewhere):
    states = []
    for streamed in (False, True):
        model = tiny_model(tmp_path / f"model {streamed}")
        if streamed:
            offload(model.transformer, "cpu")
        run = new_run(model, tmp_path / f"run {streamed}", replace(QUICK, steps=2))
        run.train()
        states.append(state_of(run))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_one_layer_at_a_time_is_on_the_device(tmp_path, elsewhere):
    """Counted: what a step holds more than one whose weights are there already."""
    counted = []
    for streamed in (False, True):
        model = tiny_model(tmp_path / f"model {streamed}")
        if streamed:
            offload(model.transformer, "cpu")
        run = sft(model, tmp_path / f"run {streamed}", steps=1)
        counted.append(most_bytes(run.train))
    layers = adaptable_layers(model.transformer).values()
    whole = sum(layer.weight.nbytes for layer in layers)
    assert counted[1] - counted[0] <= streamed_bytes(model.transformer) < whole / 3


def test_nothing_of_the_layers_is_kept_for_the_backward(tmp_path, elsewhere):
    model, kept = tiny_model(tmp_path), []
    offload(model.transformer, "cpu")
    sizes = {layer.weight.nbytes for layer in adaptable_layers(model.transformer).values()}
    shapes = {layer.weight.shape for layer in adaptable_layers(model.transformer).values()}
    with (
        LoRA(model.transformer, rank=2),
        torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor
        ),
    ):
        model.transformer(torch.arange(10)[None]).sum().backward()
    assert sizes and kept and not shapes & set(kept)


def test_a_lora_of_the_8b_fits_12_gb():
    """By the estimate, of SFT at 512x512 in bfloat16, one sequence at a time: embedding and output
    layer, one layer and the next, and the update."""
    config, tokens = RELEASED, 256 + 2 * 1024 + 128
    ends = 2 * config.embedding_size * config.d_model * 2
    streamed = 2 * config.d_model * config.mlp_hidden_size * 2
    trained = adapter_parameters(config, 16)
    update = update_bytes(config, 2, tokens, logits_at_once(config.embedding_size), trained, True)
    assert ends + streamed + update < 6e9

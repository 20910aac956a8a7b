"""Training a model whose weights ComfyUI keeps: what fits, and gradients through its layers."""

import pytest
import torch
from mmada_parallel.mmp_core import InputError
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.training.loop.run import recomputing
from mmada_parallel.training.weights.policies import LoRA
from torch import nn

IDS = torch.arange(60)[None]


def test_what_fits_is_chosen(nodes, model, monkeypatch):
    room = nodes.host.TrainingMemory(model)
    monkeypatch.setattr(type(room), "free", 100)
    assert room.sequences(lambda n: 10 * n, 64, 0) == 8
    assert room.sequences(lambda n: 10 * n, 4, 0) == 4
    assert room.sequences(lambda n: 10 * n, 64, 10) == 10
    monkeypatch.setattr(type(room), "beside", 5)  # the weights must be streamed
    assert room.sequences(lambda n: 10 * n, 64, 0) == 4
    with pytest.raises(InputError, match="Training on 1 sequence"):
        room.sequences(lambda n: 101 * n, 64, 0)


def gradients(hosted, trainable, checkpointing):
    transformer = hosted.model.transformer
    with trainable(hosted), LoRA(transformer, rank=2, device="cpu") as lora:
        for low_rank in lora.low_ranks.values():
            nn.init.normal_(low_rank.lora_B.weight, generator=torch.Generator().manual_seed(1))
        with recomputing(transformer, checkpointing):
            hidden = transformer(IDS)
            loss = transformer.logits(hidden, slice(10, 40)).float().log_softmax(-1).sin().sum()
            loss.backward()
        return float(loss.detach()), [p.grad.clone() for _, p in lora.named_parameters()]


def plain_gradients(hosted):
    return gradients(hosted, lambda _: torch.inference_mode(False), False)


def close(found, wanted):
    return found[0] == wanted[0] and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6 * float(b.abs().max() + 1))
        for a, b in zip(found[1], wanted[1], strict=True)
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_plain_autograd(nodes, model, checkpointing):
    found = gradients(model, nodes.host.trainable, checkpointing)
    assert close(found, plain_gradients(model))


@pytest.fixture
def overwritten(model, monkeypatch):
    """As if weights were streamed, each through a buffer that is overwritten after its use."""
    import comfy.ops

    cast = comfy.ops.cast_bias_weight

    def cast_bias_weight(*args, **kwargs):
        weight, bias, stream = cast(*args, **kwargs)
        return weight.detach().clone(), bias, stream

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast_bias_weight)
    monkeypatch.setattr(
        comfy.ops, "uncast_bias_weight", lambda layer, weight, *rest: weight.fill_(torch.nan)
    )
    for layer in model.model.transformer.modules():
        if hasattr(layer, "comfy_cast_weights"):
            monkeypatch.setattr(layer, "comfy_cast_weights", True)


def test_streamed_weights_are_asked_for_again_in_the_backward(nodes, model, request):
    wanted = plain_gradients(model)
    request.getfixturevalue("overwritten")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        plain_gradients(model)
    assert close(gradients(model, nodes.host.trainable, False), wanted)


@pytest.mark.parametrize("form", ["fp8", "int8"])
def test_gradients_through_quantised_weights(nodes, host, model_folder, form):
    file = model_folder / "trained.safetensors"
    convert(model_folder / "untrained", file, quantize=form)
    quantised = host.load(file.name, "fp32", "auto")
    file.unlink()
    found = gradients(quantised, nodes.host.trainable, True)
    assert close(found, plain_gradients(quantised))


def test_weights_that_were_moved_while_a_node_ran_can_be_trained_on(nodes, host):
    moved = host.load("untrained", "fp32", "auto")
    wanted = plain_gradients(moved)
    with torch.inference_mode():
        for layer in moved.model.transformer.modules():
            if isinstance(getattr(layer, "weight", None), nn.Parameter):
                layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
    assert all(p.is_inference() for p in moved.model.transformer.parameters())
    assert close(gradients(moved, nodes.host.trainable, True), wanted)

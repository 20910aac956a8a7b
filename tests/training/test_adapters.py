"""Adapters and full weights: the start, what trains, and the reference."""

import pytest
import torch
import torch.nn.functional as F
from mmada_parallel.mmp_core import InputError
from mmada_parallel.mmp_core.model.config import ATTENTION_LAYERS, BLOCK_LAYERS, LAYER_SETS
from mmada_parallel.mmp_core.model.formats import FORMATS
from mmada_parallel.tests.training.adapted import quantised, stirred
from mmada_parallel.training.weights.policies import FullWeights, LoRA
from torch.utils.checkpoint import checkpoint

IDS = torch.arange(12)[None]


@pytest.fixture(params=["fp32", "bf16", "fp8", "int8"])
def base(model, request):
    model.requires_grad_(False)
    if request.param == "bf16":
        return model.bfloat16()
    return quantised(model, request.param) if request.param in FORMATS else model


def trained(policy, forward, steps=2):
    optimizer = torch.optim.AdamW([p for _, p in policy.named_parameters()], lr=1e-2)
    for _ in range(steps):
        forward().float().sin().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_an_untrained_adapter_changes_nothing(base):
    before = base(IDS)
    with LoRA(base, rank=4):
        assert torch.equal(base(IDS), before)
    assert torch.equal(base(IDS), before)


def test_what_is_added_is_the_low_rank_product(model):
    inputs = {}
    layer = model.layers["blocks"][1].q_proj
    handle = layer.register_forward_hook(lambda _, x, y: inputs.update(x=x[0], y=y))
    lora = stirred(LoRA(model, rank=4, alpha=2, layers=["q_proj"]))
    found = []
    layer.register_forward_hook(lambda _, x, y: found.append(y))
    model(IDS)
    handle.remove()
    a, b = (lora.state_dict()[f"model.transformer.blocks.1.q_proj.lora_{m}.weight"] for m in "AB")
    expected = inputs["y"] + 0.5 * (inputs["x"] @ a.T @ b.T)
    assert torch.allclose(found[0], expected, atol=1e-6)


def test_only_the_adapter_trains_and_the_reference_stays_exact(base):
    before, weights = base(IDS), {n: w.clone() for n, w in base.state_dict().items()}
    lora = LoRA(base, rank=4, seed=1)
    trained(lora, lambda: base(IDS))
    assert not torch.equal(base(IDS), before)
    with lora.reference():
        assert torch.equal(base(IDS), before)
    assert not torch.equal(base(IDS), before)
    assert all(torch.equal(w, weights[n]) for n, w in base.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in base.parameters())
    assert all(p.dtype == torch.float32 for p in lora.parameters())
    lora.detach()
    assert torch.equal(base(IDS), before)


def test_the_reference_of_an_adapter_trained_further_has_it_as_it_was(base):
    """Else the KL term would pull the adapter that is trained further out of the model."""
    first = stirred(LoRA(base, rank=4, alpha=4))
    start, expected = {n: w.clone() for n, w in first.state_dict().items()}, base(IDS)
    first.detach()
    bare = base(IDS)
    lora = LoRA(base, rank=4, start=start)
    assert lora.start and torch.equal(base(IDS), expected)
    stirred(lora, seed=5)
    changed = base(IDS)
    with lora.reference():
        assert torch.equal(base(IDS), expected)
        with lora.reference():
            assert torch.equal(base(IDS), expected)
        assert torch.equal(base(IDS), expected)
    assert torch.equal(base(IDS), changed)
    assert lora.state_dict().keys() == start.keys()
    assert not any(torch.equal(start[n], w) for n, w in lora.state_dict().items() if "lora_B" in n)
    lora.detach()
    assert torch.equal(base(IDS), bare)


def test_an_adapter_that_does_not_fit_is_not_trained_further(model):
    with LoRA(model, rank=2) as other, pytest.raises(InputError, match="does not fit"):
        LoRA(model, rank=3, start=other.state_dict())


def test_the_reference_comes_back_after_an_error_and_when_nested(model):
    lora = stirred(LoRA(model, rank=2))
    changed = model(IDS)
    with pytest.raises(RuntimeError), lora.reference():
        with lora.reference():
            pass
        assert not torch.equal(model(IDS), changed)
        raise RuntimeError
    assert torch.equal(model(IDS), changed)


def test_gradients_are_those_of_merged_weights(model):
    model.double()
    lora = stirred(LoRA(model, rank=3, alpha=6, dtype=torch.float64))
    wanted = torch.randn(1, 12, 32, dtype=torch.float64)
    F.mse_loss(model(IDS), wanted).backward()
    found = {name: p.grad for name, p in lora.named_parameters()}
    lora.detach()
    merged = {name: p.detach().clone().requires_grad_() for name, p in lora.named_parameters()}
    weights = dict(model.named_parameters())
    for name in lora.shapes:
        a, b = (merged[f"{name}.lora_{m}.weight"] for m in "AB")
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + 2 * b @ a
    F.mse_loss(torch.func.functional_call(model, weights, (IDS,)), wanted).backward()
    for name, grad in found.items():
        assert grad.abs().max() > 1e-6
        assert torch.allclose(grad, merged[name].grad, rtol=1e-9, atol=1e-14), name


def test_gradient_checkpointing_gives_the_same_gradients(base):
    lora = stirred(LoRA(base, rank=4))

    def grads(forward):
        lora.zero_grad()
        forward().float().sin().sum().backward()
        return [p.grad.clone() for p in lora.parameters()]

    plain = grads(lambda: base(IDS))
    again = grads(lambda: checkpoint(base, IDS, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_logits_of_a_part_of_the_vocabulary_are_adapted_through_the_hidden_states(model):
    before = model.logits(model(IDS), slice(3, 9))
    stirred(LoRA(model, rank=4))
    after = model.logits(model(IDS), slice(3, 9))
    assert not torch.equal(before, after)
    assert torch.allclose(after, model.logits(model(IDS))[..., 3:9], atol=1e-6)


def test_adapters_add_up_and_come_off_in_any_order(model):
    before = model(IDS)
    first, second = stirred(LoRA(model, rank=2), 1), stirred(LoRA(model, rank=3), 2)
    both = model(IDS)
    first.detach()
    alone = model(IDS)
    assert not torch.equal(alone, both)
    again = first.attach(model)
    assert torch.allclose(model(IDS), both, atol=1e-5)
    second.detach()
    again.remove()
    assert torch.equal(model(IDS), before)


def test_the_same_seed_gives_the_same_start_and_leaves_the_global_one_alone(model):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, two, other = (LoRA(model, rank=4, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.rand(1) == expected
    assert all(torch.equal(one[name], two[name]) for name in one)
    a = "model.transformer.blocks.0.q_proj.lora_A.weight"
    assert not torch.equal(one[a], other[a])
    assert 0.5 < one[a].abs().max() * 32**0.5 <= 1


def test_a_state_continues_bit_for_bit(model):
    lora = stirred(LoRA(model, rank=4, alpha=8))
    expected, state = model(IDS), lora.state_dict()
    lora.detach()
    LoRA(model, rank=4, alpha=8, seed=9).load_state_dict(state)
    assert torch.equal(model(IDS), expected)


@pytest.mark.parametrize("layers", [*LAYER_SETS.values(), ("v_proj", "ff_out")])
def test_layers_are_chosen_by_name_and_the_head_is_never_among_them(model, layers):
    names = set(LoRA(model, layers=layers, rank=2).shapes)
    prefix = "model.transformer.blocks"
    assert names == {f"{prefix}.{i}.{layer}" for i in range(2) for layer in layers}


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"layers": ["lm_head"]}, "lm_head cannot be adapted: choose among q_proj"),
        ({"layers": []}, "No layers to adapt"),
        ({"rank": 0}, "The rank is 0"),
    ],
)
def test_wrong_choices_are_told(model, wrong, told):
    with pytest.raises(InputError, match=told):
        LoRA(model, **wrong)


def test_an_adapter_made_in_inference_mode_can_be_trained(model):
    with torch.inference_mode():
        lora = LoRA(model, rank=2, layers=ATTENTION_LAYERS)
    trained(lora, lambda: model(IDS))
    assert any(lora.get_submodule(name).lora_B.weight.any() for name in lora.shapes)


def test_all_weights_train_and_the_reference_is_the_start(model):
    before = model(IDS)
    policy = FullWeights(model)
    trained(policy, lambda: model(IDS))
    changed = model(IDS)
    assert not torch.equal(changed, before)
    with policy.reference(), torch.no_grad():
        assert torch.equal(model(IDS), before)
    assert torch.equal(model(IDS), changed)
    assert {name for name, _ in policy.named_parameters()} == set(policy.state_dict())
    policy.detach()
    assert not model(IDS).requires_grad


def test_a_graph_made_before_the_reference_was_asked_is_still_right_after(model):
    policy = FullWeights(model)
    trained(policy, lambda: model(IDS))
    logits = model.logits(model(IDS))
    expected = torch.autograd.grad(logits.pow(2).sum(), model.parameters())
    logits = model.logits(model(IDS))
    with policy.reference(), torch.no_grad():
        model(IDS)
    found = torch.autograd.grad(logits.pow(2).sum(), model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_full_weights_continue_from_a_state_with_the_reference_of_the_start(model):
    before, weights = model(IDS), {n: w.clone() for n, w in model.state_dict().items()}
    policy = FullWeights(model)
    trained(policy, lambda: model(IDS))
    state, changed = {n: w.clone() for n, w in policy.state_dict().items()}, model(IDS)
    model.load_state_dict(weights)
    again = FullWeights(model)
    again.load_state_dict(state)
    assert torch.equal(model(IDS), changed)
    with again.reference():
        assert torch.equal(model(IDS), before)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_quantised_model_is_not_trained_as_a_whole(model, kind):
    with pytest.raises(InputError, match="quantised model cannot be trained as a whole"):
        FullWeights(quantised(model, kind))


def test_the_blocks_hold_no_other_linear_layers(model):
    found = {
        name.rpartition(".")[2]
        for name, layer in model.layers["blocks"].named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert found == set(BLOCK_LAYERS)

"""Speed levels: what they reveal early, what they leave out, and that they stay per sample."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core import MASKED, InputError, SamplerSettings, denoise
from mmada_parallel.mmp_core.sampler.policies import corrected_policies
from mmada_parallel.mmp_core.sampler.selection import SURE
from mmada_parallel.tests.mmp_core import tiny

FAST = SamplerSettings(text_steps=12, image_steps=6, joint_guidance=1.5, speed="fast")


def sharpened(variant, factor):
    """A model that is ``factor`` times as sure of everything."""
    model = tiny.TinyModel(variant)
    model.transformer.layers["ln_f"].weight.mul_(factor)
    return model


MODELS = {(v, f): sharpened(v, f) for v in "AM" for f in (1, 10, 1000)}


def prompt(variant, **options):
    return tiny.prompt(MODELS[variant, 1].layout, text=12, grid=(3, 4), **options)


@pytest.mark.parametrize("early", ["fast", "fastest"])
@pytest.mark.parametrize("variant", "AM")
def test_a_sure_model_is_asked_less_and_an_unsure_one_as_often(variant, early):
    asked = {}
    for factor in (1, 10, 1000):
        model = MODELS[variant, factor]
        for speed in ("exact", early):
            model.forwards = 0
            run = denoise(model, prompt(variant), dataclasses.replace(FAST, speed=speed))
            asked[factor, speed] = model.forwards
            assert (run.final.text != MASKED).all() and (run.final.image != MASKED).all()
    assert asked[1, early] <= asked[1, "exact"]
    assert 2 <= asked[1000, early] <= asked[1000, "exact"] / 3


@pytest.mark.parametrize("early", ["fast", "fastest"])
@pytest.mark.parametrize("variant", "AM")
def test_only_what_is_sure_comes_before_its_turn(variant, early):
    plan = denoise(MODELS[variant, 10], prompt(variant), dataclasses.replace(FAST, speed="exact"))
    left = [(s.after.text == MASKED).sum() for s in plan]
    run = denoise(MODELS[variant, 10], prompt(variant), dataclasses.replace(FAST, speed=early))
    assert run.total_steps == plan.total_steps
    for step, planned in zip(run, left, strict=True):
        unsure = step.text_revealed & (step.text_confidence < SURE)
        behind = ((step.state.text == MASKED).sum() - planned).clamp(min=0)
        assert unsure.sum() <= behind
        assert (step.after.text == MASKED).sum() <= planned
    ahead = [(s.after.text == MASKED).sum() < planned for s, planned in zip(run, left, strict=True)]
    assert any(ahead)


def test_how_sure_is_enough_can_be_set():
    model, start = MODELS["A", 1], prompt("A")
    early = []
    for sure in (0.0, 0.185, 0.99):
        policies = corrected_policies(model, start, FAST)
        policies.selection.sure = sure
        run = denoise(model, start, policies=policies)
        early.append(int(run.steps[0].text_revealed.sum()))
    assert early[0] == 12 > early[1] > early[2] == 1


@settings(max_examples=30)
@given(
    variant=st.sampled_from("AM"),
    factor=st.sampled_from((1, 10, 1000)),
    seed=st.integers(0, 99),
    locked=st.sampled_from((0.0, 0.4)),
    temperature=st.sampled_from((0.0, 0.7)),
    speed=st.sampled_from(("cached", "fast", "fastest")),
)
def test_a_sample_does_not_depend_on_its_batch(variant, factor, seed, locked, temperature, speed):
    model, start = MODELS[variant, factor], prompt(variant, batch=3, locked=locked, seed=seed)
    own = dataclasses.replace(
        FAST, text_temperature=temperature, seed=[seed, seed + 5, seed + 9], speed=speed
    )
    together = denoise(model, start, own).final
    for i in range(3):
        alone = denoise(model, start[i : i + 1], dataclasses.replace(own, seed=[own.seed[i]])).final
        assert torch.equal(alone.text, together[i : i + 1].text)
        assert torch.equal(alone.image, together[i : i + 1].image)


@pytest.mark.parametrize("speed", ["cached", "fast", "fastest"])
def test_the_reference_knows_only_exact(speed):
    with pytest.raises(InputError, match=f"speed is '{speed}' with the upstream preset"):
        SamplerSettings.upstream("A", speed=speed)


@pytest.mark.parametrize("speed", ["fast", "fastest"])
def test_early_tokens_do_not_fit_random_remasking(speed):
    with pytest.raises(InputError, match=f"speed is '{speed}' with remasking 'random'"):
        SamplerSettings(speed=speed, remasking="random")


@pytest.fixture
def reads(monkeypatch):
    """Where a tensor's value is read by Python, which on a GPU waits for it."""
    found = []
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        plain = getattr(torch.Tensor, name)

        def read(tensor, *args, _name=name, _plain=plain):
            found.append(_name)
            return _plain(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, read)
    return found


@pytest.mark.parametrize("speed, most", [("exact", 0), ("cached", 0), ("fast", 1), ("fastest", 1)])
@pytest.mark.parametrize("variant", "AM")
def test_a_step_reads_nothing_back_but_how_far_an_early_level_came(variant, speed, most, reads):
    model, start = MODELS[variant, 10], prompt(variant, batch=2, locked=0.3)
    settings = dataclasses.replace(FAST, speed=speed, reasoning_guidance=0.5, text_temperature=0.5)
    per_step = []

    def watch(index, total, step):
        per_step.append(len(reads))

    denoise(model, start, settings, callback=watch)
    assert max(b - a for a, b in pairwise(per_step)) == most

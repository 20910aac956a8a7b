"""Speed "fast": what it reveals early, what it leaves out, and that it stays per sample."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core import MASKED, InputError, SamplerSettings, denoise
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


@pytest.mark.parametrize("variant", "AM")
def test_a_sure_model_is_asked_less_and_an_unsure_one_as_often(variant):
    asked = {}
    for factor in (1, 10, 1000):
        model = MODELS[variant, factor]
        for speed in ("exact", "fast"):
            model.forwards = 0
            run = denoise(model, prompt(variant), dataclasses.replace(FAST, speed=speed))
            asked[factor, speed] = model.forwards
            assert (run.final.text != MASKED).all() and (run.final.image != MASKED).all()
    assert asked[1, "fast"] <= asked[1, "exact"]
    assert 2 <= asked[1000, "fast"] <= asked[1000, "exact"] / 3


@pytest.mark.parametrize("variant", "AM")
def test_only_what_is_sure_comes_before_its_turn(variant):
    plan = denoise(MODELS[variant, 10], prompt(variant), dataclasses.replace(FAST, speed="exact"))
    left = [(s.after.text == MASKED).sum() for s in plan]
    run = denoise(MODELS[variant, 10], prompt(variant), FAST)
    assert run.total_steps == plan.total_steps
    for step, planned in zip(run, left, strict=True):
        unsure = step.text_revealed & (step.text_confidence < SURE)
        behind = ((step.state.text == MASKED).sum() - planned).clamp(min=0)
        assert unsure.sum() <= behind
        assert (step.after.text == MASKED).sum() <= planned


@settings(max_examples=30, deadline=None)
@given(
    variant=st.sampled_from("AM"), factor=st.sampled_from((1, 10, 1000)), seed=st.integers(0, 99),
    locked=st.sampled_from((0.0, 0.4)), temperature=st.sampled_from((0.0, 0.7)),
)  # fmt: skip
def test_a_sample_does_not_depend_on_its_batch(variant, factor, seed, locked, temperature):
    model, start = MODELS[variant, factor], prompt(variant, batch=3, locked=locked, seed=seed)
    own = dataclasses.replace(FAST, text_temperature=temperature, seed=[seed, seed + 5, seed + 9])
    together = denoise(model, start, own).final
    for i in range(3):
        alone = denoise(model, start[i : i + 1], dataclasses.replace(own, seed=[own.seed[i]])).final
        assert torch.equal(alone.text, together[i : i + 1].text)
        assert torch.equal(alone.image, together[i : i + 1].image)


def test_it_fits_neither_the_reference_nor_random_remasking():
    with pytest.raises(InputError, match="speed is 'fast' with the upstream preset"):
        SamplerSettings.upstream("A", speed="fast")
    with pytest.raises(InputError, match="remasking 'random'"):
        SamplerSettings(speed="fast", remasking="random")

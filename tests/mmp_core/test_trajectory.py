"""What a run records: how many steps, which, and both its ends."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmada_parallel.mmp_core import MASKED, SamplerSettings, denoise
from mmada_parallel.tests.mmp_core import tiny

MODEL = {variant: tiny.TinyModel(variant) for variant in "AM"}
PLAIN = SamplerSettings(joint_guidance=0.0)


def prompt(variant="A", **options):
    return tiny.prompt(MODEL[variant].layout, **options)


@pytest.mark.parametrize("most", [0, 1, 2, 4, 100, None])
def test_at_most_so_many_steps_are_recorded(most):
    start, own = prompt(text=6), dataclasses.replace(PLAIN, text_steps=6, image_steps=6)
    whole = denoise(MODEL["A"], start, own)
    some = denoise(MODEL["A"], start, own, record=most)
    assert len(some) == min(whole.total_steps, 100 if most is None else most)
    assert some.total_steps == whole.total_steps
    assert torch.equal(some.final.image, whole.final.image)
    if most:
        assert torch.equal(some.steps[-1].after.text, whole.final.text)


def test_a_trajectory_of_the_released_size_stays_small():
    """512x512 pixels (32x32 tokens) and 256 words: 128 steps, the node's default, within 20 MB."""
    own = dataclasses.replace(PLAIN, text_steps=8, image_steps=8)
    run = denoise(MODEL["A"], prompt(text=256, grid=(32, 32)), own)
    tensors = [
        tensor
        for step in run
        for part in (step, step.state, step.guess, step.after)
        for tensor in vars(part).values()
        if isinstance(tensor, torch.Tensor)
    ]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert sum(held.values()) / len(run) < 20e6 / 128


@given(st.floats(0, 1), st.integers(1, 8))
def test_a_fraction_of_the_run_finds_the_step_that_stands_there(fraction, most):
    start, own = prompt(text=6), dataclasses.replace(PLAIN, text_steps=6, image_steps=6)
    run = denoise(MODEL["A"], start, own, record=most)
    found, done = run.at(fraction), round(fraction * run.total_steps)
    assert found.index < max(done, 0) or found.index == -1
    assert not [step for step in run if found.index < step.index < done]
    whole = denoise(MODEL["A"], start, own)
    wanted = whole.steps[found.index].after if found.index >= 0 else start.initial
    assert torch.equal(found.after.text, wanted.text)
    assert torch.equal(found.after.image, wanted.image)
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="0 to 1"):
            run.at(wrong)


@pytest.mark.parametrize("variant", "AM")
@pytest.mark.parametrize("record", [0, 3, None])
def test_a_trajectory_ends_with_its_final_state(variant, record):
    own = SamplerSettings.upstream(variant, text_steps=6, image_steps=4)
    run = denoise(MODEL[variant], prompt(variant, text=6), own, record=record)
    for name in ("text", "image"):
        assert torch.equal(getattr(run.at(1.0).after, name), getattr(run.final, name))
        assert (getattr(run.at(0.0).after, name) == MASKED).all()
    assert run.end.index == run.total_steps - 1

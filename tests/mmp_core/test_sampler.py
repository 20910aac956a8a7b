import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core import MASKED, InputError, SamplerSettings, TokenState, denoise
from mmada_parallel.mmp_core.model.kernels.plain import log_odds
from mmada_parallel.mmp_core.sampler.guidance import CorrectedGuidance
from mmada_parallel.mmp_core.sampler.policies import corrected_policies
from mmada_parallel.mmp_core.sampler.positions import MaskedPositions
from mmada_parallel.mmp_core.sampler.predictor import BranchOutputs, Predictor
from mmada_parallel.mmp_core.sampler.schedule import corrected_steps
from mmada_parallel.mmp_core.variants.mmada_parallel_a import truncated_quotas
from mmada_parallel.mmp_core.variants.mmada_parallel_m import even_quotas
from mmada_parallel.tests.mmp_core import tiny

MODEL = {variant: tiny.TinyModel(variant) for variant in "AM"}
PLAIN = SamplerSettings(joint_guidance=0.0)
PLAIN_3 = SamplerSettings(joint_guidance=0.0, text_steps=3, image_steps=3)

EMPTY = (0, 0)
"""The grid of an answer without a picture."""

seeds = st.integers(0, 2**32)


def prompt(variant="A", **options):
    return tiny.prompt(MODEL[variant].layout, **options)


@st.composite
def runs(draw):
    """A variant, any prompt, and settings of either preset that fit it."""
    variant = draw(st.sampled_from("AM"))
    start = prompt(
        variant,
        batch=draw(st.integers(1, 3)),
        text=draw(st.integers(0, 6)),
        grid=draw(st.sampled_from((EMPTY, (1, 1), (1, 4), (2, 3), (4, 4)))),
        image=draw(st.booleans()),
        locked=draw(st.sampled_from((0.0, 0.4, 1.0))),
        seed=draw(seeds),
    )
    scales = st.sampled_from((0.0, 1.5))
    own = {
        "text_steps": draw(st.integers(1, 9)),
        "image_steps": draw(st.integers(1, 9)),
        "text_temperature": draw(st.sampled_from((0.0, 0.7))),
        "image_temperature": draw(st.sampled_from((0.0, 1.0))),
        "remasking": draw(st.sampled_from(("low_confidence", "random"))),
        "seed": draw(seeds),
    }
    return variant, start, own, draw(scales), draw(scales), draw(scales)


@settings(max_examples=80)
@given(
    run=runs(),
    order=st.sampled_from(("parallel", "text_first", "image_first")),
    speed=st.sampled_from(("exact", "cached", "fast", "fastest")),
)
def test_corrected_unmasks_everything_once(run, order, speed):
    variant, start, own, text, image, joint = run
    own |= {"text_guidance": text, "image_guidance": image, "joint_guidance": joint}
    early = speed in ("fast", "fastest")
    own["remasking"] = "low_confidence" if early else own["remasking"]
    own |= {"order": order, "speed": speed}
    trajectory = denoise(MODEL[variant], start, SamplerSettings(**own))
    layout, state = MODEL[variant].layout, start.initial
    for step in trajectory:
        assert torch.equal(step.state.text, state.text)
        assert torch.equal(step.state.image, state.image)
        for name in ("text", "image"):
            before, after = getattr(state, name), getattr(step.after, name)
            revealed = getattr(step, f"{name}_revealed")
            guess, confidence = getattr(step.guess, name), getattr(step, f"{name}_confidence")
            assert (before[revealed] == MASKED).all() and (after[revealed] != MASKED).all()
            assert torch.equal(after[~revealed], before[~revealed])
            assert torch.equal(after[revealed], guess[revealed])
            assert (confidence[before != MASKED] == 1).all()
            assert ((0 <= confidence) & (confidence <= 1)).all()
        assert early or (step.text_revealed.sum() + step.image_revealed.sum()) > 0
        state = step.after
    assert torch.equal(state.text, trajectory.final.text)
    text, image = trajectory.final.text, trajectory.final.image
    assert ((text >= 0) & (text < layout.mask_id)).all()
    assert ((image >= 0) & (image < layout.codebook_size)).all()
    locked = start.initial.image != MASKED
    assert torch.equal(image[locked], start.initial.image[locked])


@settings(max_examples=40)
@given(run=runs())
def test_upstream_unmasks_every_image_code(run):
    variant, start, own, text, image, _ = run
    names = {
        "A": ("text_guidance", "image_guidance"),
        "M": ("reasoning_guidance", "joint_guidance"),
    }
    own |= {"image_guidance": 0.0, "joint_guidance": 0.0}
    own |= dict(zip(names[variant], (text, image), strict=True))
    final = denoise(MODEL[variant], start, SamplerSettings.upstream(variant, **own)).final
    assert ((final.image >= 0) & (final.image < MODEL[variant].layout.codebook_size)).all()
    locked = start.initial.text != MASKED
    assert torch.equal(final.text[locked], start.initial.text[locked])


@settings(max_examples=30)
@given(run=runs(), upstream=st.booleans())
def test_a_sample_does_not_depend_on_its_batch(run, upstream):
    variant, start, own, text, image, joint = run
    own["seed"] = [own["seed"] + 5 * i for i in range(start.batch)]
    if upstream and variant == "A":
        own |= {"text_guidance": text, "image_guidance": image}
        make = SamplerSettings.upstream
    else:
        own |= {"text_guidance": text, "joint_guidance": joint}
        make = SamplerSettings
    together = denoise(MODEL[variant], start, make(**own)).final
    for i, seed in enumerate(own["seed"]):
        torch.manual_seed(0)
        alone = denoise(MODEL[variant], start[i : i + 1], make(**{**own, "seed": seed})).final
        assert torch.equal(alone.text, together.text[i : i + 1])
        if not upstream:
            assert torch.equal(alone.image, together.image[i : i + 1])


def test_seeds():
    start = prompt(batch=2, text=6, grid=(4, 4))
    own = dataclasses.replace(PLAIN, text_temperature=1.0)
    start = start[:1].repeat(2)

    def run(seed):
        return denoise(MODEL["A"], start, dataclasses.replace(own, seed=seed)).final

    assert torch.equal(run(3).image, run(3).image) and torch.equal(run(3).text, run(3).text)
    assert not torch.equal(run(3).image, run(4).image)
    assert torch.equal(run(3).image[1], run(4).image[0])
    assert torch.equal(run([8, 8]).image[0], run([8, 8]).image[1])
    torch.manual_seed(1)
    first = run(None)
    torch.manual_seed(1)
    assert torch.equal(first.image, run(None).image)
    with pytest.raises(InputError, match="3 seeds"):
        run([1, 2, 3])


def count_forwards(start, settings, variant="A"):
    model = MODEL[variant]
    model.forwards = 0
    trajectory = denoise(model, start, settings)
    return model.forwards, trajectory


def test_only_the_forwards_that_matter_run():
    start = prompt(text=4, grid=(3, 3))
    steps = {"text_steps": 4, "image_steps": 3}
    plain, trajectory = count_forwards(start, SamplerSettings(**steps, joint_guidance=0))
    assert plain == len(trajectory) == 4
    image_steps = sum(bool(step.image_revealed.any()) for step in trajectory)
    assert image_steps == 3
    for scales, branches in (
        ({"joint_guidance": 2.0}, 1),
        ({"joint_guidance": 0.0, "text_guidance": 1.0}, 1),
        ({"joint_guidance": 2.0, "text_guidance": 1.0, "image_guidance": 0.5}, 3),
    ):
        forwards, _ = count_forwards(start, SamplerSettings(**steps, **scales))
        assert forwards == plain + branches * image_steps
    both = SamplerSettings(**steps, joint_guidance=2.0, reasoning_guidance=1.0)
    assert count_forwards(start, both)[0] == 2 * plain
    no_image = prompt(text=4, grid=(3, 3), image=False)
    scales = {"joint_guidance": 2.0, "text_guidance": 1.0, "image_guidance": 1.0}
    assert count_forwards(no_image, SamplerSettings(**steps, **scales))[0] == plain + image_steps


@pytest.mark.parametrize("variant, name", [("A", "image_guidance"), ("M", "joint_guidance")])
def test_upstream_skips_unscaled_branches(variant, name):
    start = prompt(variant)
    own = {"text_steps": 4, "image_steps": 2, "reasoning_guidance": 0.0, "image_guidance": 0.0}
    plain = SamplerSettings.upstream(variant, **{**own, "joint_guidance": 0.0})
    assert count_forwards(start, plain, variant)[0] == 4
    guided = SamplerSettings.upstream(variant, **{**own, "joint_guidance": 0.0, name: 1.0})
    assert count_forwards(start, guided, variant)[0] == 6


def test_nothing_undecided_runs_nothing():
    forwards, trajectory = count_forwards(prompt(locked=1.0), PLAIN)
    assert forwards == len(trajectory) == trajectory.total_steps == 0
    assert torch.equal(trajectory.final.image, prompt(locked=1.0).initial.image)


def test_one_modality_given():
    whole = denoise(MODEL["A"], prompt(), PLAIN).final
    empty = prompt().initial
    for start in (TokenState(whole.text, empty.image), TokenState(empty.text, whole.image)):
        final = denoise(MODEL["A"], prompt().starting_from(start), PLAIN).final
        assert not (final.text == MASKED).any() and not (final.image == MASKED).any()


def test_more_steps_than_tokens_and_one_step():
    many = SamplerSettings(text_steps=50, image_steps=40, joint_guidance=0)
    forwards, trajectory = count_forwards(prompt(text=3, grid=(1, 2)), many)
    assert forwards == len(trajectory) <= 5
    forwards, _ = count_forwards(
        prompt(), SamplerSettings(text_steps=1, image_steps=1, joint_guidance=0)
    )
    assert forwards == 1


def test_callback_sees_every_step_and_may_interrupt():
    seen = []

    def watch(index, total, step):
        assert step.index == index
        seen.append((index, total))
        if index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(MODEL["A"], prompt(text=6), SamplerSettings(text_steps=6), callback=watch)
    assert seen == [(i, seen[0][1]) for i in range(3)]


def test_a_branch_with_nothing_to_drop_is_not_run():
    start = prompt(text=3, image=False).without_instruction()
    guided = dataclasses.replace(PLAIN, joint_guidance=2.0, text_steps=3, image_steps=3)
    model = tiny.TinyModel("A")
    run = denoise(model, start, guided)
    assert model.forwards == run.total_steps
    assert torch.equal(run.final.image, denoise(model, start, PLAIN_3).final.image)


@pytest.mark.parametrize("order", ["text_first", "image_first"])
@pytest.mark.parametrize("variant", "AM")
def test_one_modality_is_wholly_decided_before_the_other(variant, order):
    own = dataclasses.replace(PLAIN, text_steps=4, image_steps=3, order=order)
    run = denoise(MODEL[variant], prompt(variant), own)
    names = ("text", "image") if order == "text_first" else ("image", "text")
    first, second = ([bool(getattr(s, f"{n}_revealed").any()) for s in run] for n in names)
    steps = {"text": 4, "image": 3}
    assert first == [True] * steps[names[0]] + [False] * steps[names[1]]
    assert second == [not there for there in first]
    assert (run.final.text != MASKED).all() and (run.final.image != MASKED).all()


def test_the_reference_knows_no_other_order():
    with pytest.raises(InputError, match="order is 'text_first' with the upstream preset"):
        SamplerSettings.upstream("A", order="text_first")


def test_runs_in_inference_mode():
    with torch.inference_mode():
        inside = denoise(MODEL["A"], prompt(), PLAIN).final
    assert torch.equal(inside.image, denoise(MODEL["A"], prompt(), PLAIN).final.image)


def test_no_gradients_are_kept():
    model = tiny.TinyModel("A")
    model.transformer.requires_grad_(True)
    step = denoise(model, prompt(), PLAIN).steps[0]
    assert not step.text_confidence.requires_grad and not step.image_confidence.requires_grad


def test_foreign_tokens_are_refused():
    start = prompt()
    beyond = TokenState(start.initial.text, start.initial.image + 1 + tiny.CODES["A"])
    with pytest.raises(InputError, match="another checkpoint"):
        denoise(MODEL["A"], start.starting_from(beyond), PLAIN)


@pytest.mark.parametrize("variant", "AM")
def test_the_mask_and_image_codes_are_no_text(variant):
    layout, start = MODEL[variant].layout, prompt(variant)
    for token, kind in ((layout.mask_id, "the mask's id"), (layout.image_offset, "an image code")):
        text = start.initial.text.clone()
        text[0, 1] = token
        locked = start.starting_from(TokenState(text, start.initial.image))
        with pytest.raises(InputError, match=f"holds {token}, which is {kind}"):
            denoise(MODEL[variant], locked, PLAIN)


def test_the_reference_may_go_on_from_any_id_that_it_chose():
    start, layout = prompt(), MODEL["A"].layout
    text = torch.full_like(start.initial.text, layout.image_offset)
    locked = start.starting_from(TokenState(text, start.initial.image))
    settings = SamplerSettings.upstream("A", text_steps=2, image_steps=2, seed=0)
    assert torch.equal(denoise(MODEL["A"], locked, settings).final.text, text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"text_schedule": "square"},
        {"preset": "upstream", "image_schedule": "linear"},
        {"text_steps": 0},
        {"image_steps": 2.5e9},
        {"text_temperature": -1},
        {"image_temperature": float("nan")},
        {"joint_guidance": "4"},
        {"remasking": "high"},
        {"seed": -1},
        {"seed": 1.5},
        {"preset": "fast"},
        {"text_steps": True},
        {"text_steps": 2.5},
    ],
)
def test_settings_refuse(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SamplerSettings(**wrong)


def test_upstream_presets():
    assert SamplerSettings.upstream().image_guidance == 4.0
    assert SamplerSettings.upstream("M").joint_guidance == 4.0
    assert SamplerSettings.upstream(image_guidance=1.0, seed=None).seed is None
    with pytest.raises(InputError, match="'B' is not a checkpoint family"):
        SamplerSettings.upstream("B")
    for variant, other in (("A", "M"), ("M", "A")):
        with pytest.raises(InputError, match="must be 0"):
            denoise(MODEL[variant], prompt(variant), SamplerSettings.upstream(other))


@settings(max_examples=200)
@given(
    text=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    image=st.integers(0, 60),
    text_steps=st.integers(1, 50),
    image_steps=st.integers(1, 50),
)
def test_schedule_reveals_all_and_never_collapses(text, image, text_steps, image_steps):
    own = SamplerSettings(text_steps=text_steps, image_steps=image_steps)
    images = tuple(image for _ in text)
    steps = corrected_steps(tuple(text), images, own)
    left = list(text)
    for step in steps:
        assert step.text_quota or step.image_masked_after
        for i, quota in enumerate(step.text_quota or ()):
            assert step.text_predicted[i] == (left[i] if quota else 0)
            left[i] -= quota
    assert not any(left)
    masked = [step.image_masked_after[0] for step in steps if step.image_masked_after]
    assert masked == sorted(set(masked), reverse=True)
    assert masked[-1:] == ([0] if image else [])
    noise = [step.image_noise for step in steps if step.image_masked_after]
    assert noise == sorted(noise, reverse=True)


@settings(max_examples=100)
@given(text_steps=st.integers(1, 60), image_steps=st.integers(1, 60))
def test_every_step_asked_for_is_taken(text_steps, image_steps):
    own = SamplerSettings(text_steps=text_steps, image_steps=image_steps)
    steps = corrected_steps((10**6,), (10**6,), own)
    image = [step.image_masked_after[0] for step in steps if step.image_masked_after]
    assert sum(step.text_quota is not None for step in steps) == text_steps
    assert len(image) == image_steps and len(steps) == max(text_steps, image_steps)
    for rank, masked in enumerate(image, start=1):
        assert abs(masked - 10**6 * math.cos(math.pi / 2 * rank / image_steps)) < 1.001
    if text_steps >= 2 * image_steps:
        first = next(i for i, step in enumerate(steps) if step.image_masked_after)
        assert first == (text_steps // 4 if image_steps > 1 else text_steps - 1)


def test_each_modality_has_its_own_schedule():
    own = SamplerSettings(
        text_steps=4, image_steps=4, text_schedule="cosine", image_schedule="linear"
    )
    steps = corrected_steps((100,), (100,), own)
    assert [step.text_quota for step in steps] == [(8,), (22,), (32,), (38,)]
    assert [step.image_masked_after for step in steps] == [(75,), (50,), (25,), (0,)]


def test_reference_quotas():
    assert truncated_quotas((32,), 3) == [(11,), (11,), (10,)]
    assert truncated_quotas((5, 0), 2) == [(3, 0), (2, 0)]
    assert even_quotas((31,), 4) == [(8,), (8,), (8,), (7,)]
    for steps in (1, 7, 40):
        assert sum(q for (q,) in truncated_quotas((13,), steps)) == 13
        assert sum(q for (q,) in even_quotas((13,), steps)) == 13


def test_guidance_replaces_the_whole_prompt_on_the_same_state():
    model, start = MODEL["A"], prompt(grid=(2, 2))
    own = SamplerSettings(text_guidance=2, image_guidance=3, joint_guidance=5, reasoning_guidance=7)
    guidance = CorrectedGuidance(model.layout, start, own)
    predictor = Predictor(model.transformer, model.layout, guidance.branches)
    outputs = BranchOutputs(predictor, start.initial)
    elsewhere = TokenState(start.initial.text + 3, start.initial.image)
    index = torch.arange(4)[None]

    def logits(name, **drops):
        sequence = model.layout.model_input(start, start.initial, **drops)
        with torch.no_grad():
            full = model.transformer.logits(model.transformer(sequence.ids)).float()
        if name == "text":
            return full[:, sequence.text_positions, : model.layout.mask_id]
        codes = slice(model.layout.image_offset, None)
        return full[:, sequence.image_positions, codes][..., : model.layout.codebook_size]

    text, image, both = (
        {"drop_text": True},
        {"drop_image": True},
        dict(drop_text=True, drop_image=True),
    )
    full = logits("image")
    expected = full + 2 * (full - logits("image", **text)) + 3 * (full - logits("image", **image))
    expected = expected + 5 * (full - logits("image", **both))
    torch.testing.assert_close(guidance.image_logits(outputs, elsewhere, index).guided(), expected)
    full = logits("text")
    expected = full + 7 * (full - logits("text", **both))
    torch.testing.assert_close(guidance.text_logits(outputs, index).guided(), expected)


def test_random_streams_are_drawn_for_the_rows_alone():
    tokens = torch.tensor([[5, MASKED, MASKED], [MASKED, 1, 2], [MASKED, MASKED, MASKED]])
    counts = torch.tensor([2, 1, 0])
    positions = MaskedPositions.of(tokens, (2, 1, 0), counts)
    assert positions.index[0].tolist() == [1, 2] and positions.index[1, 0] == 0
    assert positions.valid.tolist() == [[True, True], [True, False], [False, False]]
    filled = positions.fill(torch.tensor([[7, 8], [9, 9], [9, 9]]), tokens)
    assert filled.tolist() == [[5, 7, 8], [9, 1, 2], [MASKED] * 3]
    asked = []
    positions.draw(lambda generator, count: asked.append(count) or torch.zeros(count), [None] * 3)
    assert asked == [2, 1, 0]
    assert MaskedPositions.of(tokens, None, counts).counts == (2, 1, 3)


def test_log_odds_tell_certain_tokens_apart():
    logits = torch.tensor([[[0.0, 40.0], [0.0, 45.0], [3.0, 1.0]]])
    odds = log_odds(logits, torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(odds, torch.tensor([[40.0, 45.0, 2.0]]))


def test_low_confidence_is_revealed_last():
    start = prompt(text=6, grid=(3, 3))
    policies = corrected_policies(MODEL["A"], start, SamplerSettings(image_temperature=0))
    own = SamplerSettings(image_temperature=0, text_steps=3, image_steps=3)
    for step in denoise(MODEL["A"], start, own):
        for name in ("text", "image"):
            revealed = getattr(step, f"{name}_revealed")
            hidden = (getattr(step.after, name) == MASKED) & (getattr(step.state, name) == MASKED)
            confidence = getattr(step, f"{name}_confidence")
            if revealed.any() and hidden.any():
                assert confidence[revealed].min() >= confidence[hidden].max()
    assert policies.guidance.text_choices == slice(0, MODEL["A"].layout.mask_id)

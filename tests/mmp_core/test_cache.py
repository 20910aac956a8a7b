"""Keys and values kept from step to step: what is computed, and that it is what it should be."""

import dataclasses
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmada_parallel.mmp_core import MASKED, SamplerSettings, denoise
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import KeyValueCache, MaskedDiffusionTransformer
from mmada_parallel.mmp_core.sampler.cache import (
    CHANGED_SHARE,
    ONE_IN,
    REFRESH_EVERY,
    CachePolicy,
    prompt_length,
)
from mmada_parallel.mmp_core.sampler.plan import Plan
from mmada_parallel.mmp_core.sampler.policies import corrected_policies
from mmada_parallel.mmp_core.variants.base import ModelInput
from mmada_parallel.tests.mmp_core import tiny

MODELS = {variant: tiny.TinyModel(variant) for variant in "AM"}
OWN = SamplerSettings(text_steps=24, image_steps=12, joint_guidance=1.5, speed="cached")
LENGTH = 9


def transformer(layers=2, kv_heads=2):
    config = dict(tiny.config("A"), n_layers=layers, n_kv_heads=kv_heads, n_heads=4)
    torch.manual_seed(0)
    built = MaskedDiffusionTransformer(ModelConfig.from_dict(config), dtype=torch.float64)
    return built.requires_grad_(False)


def ids(seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 20, (batch, LENGTH), generator=generator)


def at(hidden, positions):
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


def prompt(variant="A", **options):
    return tiny.prompt(MODELS[variant].layout, **{"text": 12, "grid": (3, 4), **options})


@settings(max_examples=40)
@given(data=st.data(), kv_heads=st.sampled_from((1, 2, 4)), seed=st.integers(0, 99))
def test_computing_all_positions_in_parts_is_computing_them_at_once(data, kv_heads, seed):
    model, cache = transformer(kv_heads=kv_heads), KeyValueCache()
    model(ids(seed), cache=cache)
    order = torch.stack([torch.tensor(data.draw(st.permutations(range(LENGTH)))) for _ in range(2)])
    plain = model(ids(seed + 1))
    whole = model(ids(seed + 1), cache=cache, positions=order)
    torch.testing.assert_close(whole, at(plain, order))
    kept = data.draw(st.integers(1, LENGTH))
    part = model(ids(seed + 1), cache=cache, positions=order[:, :kept])
    torch.testing.assert_close(part, at(plain, order[:, :kept]))


@settings(max_examples=40)
@given(changed=st.lists(st.integers(0, LENGTH - 1), min_size=1, unique=True))
def test_one_block_computed_at_what_changed_is_right_there(changed):
    """Keys and values of the first block depend on their own token alone."""
    model, cache, before = transformer(layers=1), KeyValueCache(), ids(0)
    model(before, cache=cache)
    positions = torch.tensor(changed).expand(2, -1)
    after = before.scatter(1, positions, ids(1).gather(1, positions))
    part = model(after, cache=cache, positions=positions)
    torch.testing.assert_close(part, at(model(after), positions))


def test_no_position_changes_nothing():
    model, cache = transformer(), KeyValueCache()
    model(ids(0), cache=cache)
    before = {block: kept.clone() for block, kept in cache.blocks.items()}
    positions = torch.tensor([[LENGTH, LENGTH, LENGTH], [4, 1, LENGTH]])
    part = model(ids(1), cache=cache, positions=positions)
    for block, kept in cache.blocks.items():
        first, second = (kept[:, i, :, :LENGTH] for i in (0, 1))
        assert torch.equal(first, before[block][:, 0, :, :LENGTH])
        assert not torch.equal(second, before[block][:, 1, :, :LENGTH])
    alone = KeyValueCache()
    model(ids(0)[1:], cache=alone)
    expected = model(ids(1)[1:], cache=alone, positions=torch.tensor([[4, 1]]))
    torch.testing.assert_close(part[1:, :2], expected)


def test_the_size_of_a_cache_is_told_before_it_is_filled():
    model, cache = transformer(kv_heads=1), KeyValueCache()
    model(ids(0, batch=3), cache=cache)
    filled = sum(kept.numel() * kept.element_size() for kept in cache.blocks.values())
    assert filled == KeyValueCache.bytes_of(model.config, 3, LENGTH, torch.float64)


@settings(max_examples=30)
@given(
    variant=st.sampled_from("AM"),
    batch=st.integers(1, 3),
    image=st.booleans(),
    locked=st.sampled_from((0.0, 0.4)),
    seed=st.integers(0, 99),
    reasoning=st.sampled_from((0, 1)),
    order=st.sampled_from(("parallel", "text_first", "image_first")),
    speeds=st.sampled_from((("exact", "cached"), ("fast", "fastest"))),
)
def test_when_all_is_computed_each_time_the_tokens_are_those_of_the_plain_level(
    variant, batch, image, locked, seed, reasoning, order, speeds
):
    model = MODELS[variant]
    start = prompt(variant, batch=batch, image=image, locked=locked, seed=seed)
    plain, caching = (
        dataclasses.replace(OWN, seed=seed, reasoning_guidance=reasoning, order=order, speed=speed)
        for speed in speeds
    )
    policies = corrected_policies(model, start, caching)
    always = dataclasses.replace(policies.cache, refresh_every=1, changed_share=-1, prompt_every=1)
    policies = dataclasses.replace(policies, cache=always)
    run, expected = denoise(model, start, policies=policies), denoise(model, start, plain)
    assert torch.equal(run.final.text, expected.final.text)
    assert torch.equal(run.final.image, expected.final.image)


class Computed:
    """How many positions each forward of ``model`` computes, by length of sequence."""

    def __init__(self, model):
        self.runs = []
        self.handle = model.transformer.register_forward_hook(self._count)

    def _count(self, module, inputs, hidden):
        self.runs.append((inputs[0].shape[1], hidden.shape[1]))

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.handle.remove()

    def of(self, length):
        return [computed for own, computed in self.runs if own == length]


def expected_sizes(run, length, *, asks_text):
    """Positions computed at each run of a branch of ``length``, from what the steps revealed."""
    sizes, image_runs, last, refreshed = [], 0, None, None
    for step in run:
        left = [int((tokens == MASKED).sum()) for tokens in (step.state.text, step.state.image)]
        text = left[0] if asks_text and step.text_revealed.any() else 0
        image = left[1] if step.image_revealed.any() else 0
        if not text + image:
            continue
        whole = last is None or (image and image_runs % REFRESH_EVERY == 0)
        if last and not whole:
            totals = step.state.text.numel(), step.state.image.numel()
            decided = [was - now for was, now in zip(refreshed, left, strict=True)]
            whole = any(n > CHANGED_SHARE * of for n, of in zip(decided, totals, strict=True))
        sizes.append(length if whole else sum(last) - sum(left) + text + -(-image // ONE_IN))
        refreshed, last = left if whole else refreshed, left
        image_runs += bool(image)
    return sizes


@pytest.mark.parametrize("variant", "AM")
def test_a_step_computes_what_it_asks_about_and_what_changed(variant):
    start = prompt(variant, text=20, grid=(6, 10))
    own = dataclasses.replace(OWN, text_steps=40, image_steps=20, image_guidance=0.5)
    with Computed(MODELS[variant]) as computed:
        run = denoise(MODELS[variant], start, own)
    layout, runs = MODELS[variant].layout, {}
    for name, drops in {"all": {}, "joint": {"drop_text": True}, "image": {}}.items():
        drops = drops if name == "all" else {**drops, "drop_image": True}
        length = layout.model_input(start, start.initial, **drops).ids.shape[1]
        runs.setdefault(length, []).append(expected_sizes(run, length, asks_text=name == "all"))
    for length, expected in runs.items():
        assert sorted(computed.of(length)) == sorted(chain.from_iterable(expected))
    whole = max(runs)
    assert sum(runs[whole][0]) < len(run) * whole / 2


@pytest.mark.parametrize("variant", "AM")
@pytest.mark.parametrize("prompt_every, expected", [(1, "LLLLLL"), (2, "LALALA"), (9, "LAAAAA")])
def test_a_refresh_without_the_prompt_computes_the_answer(variant, prompt_every, expected):
    start = prompt(variant)
    own = dataclasses.replace(OWN, text_steps=6, image_steps=6, joint_guidance=0)
    policies = corrected_policies(MODELS[variant], start, own)
    always = dataclasses.replace(
        policies.cache, refresh_every=1, changed_share=-1, prompt_every=prompt_every
    )
    with Computed(MODELS[variant]) as computed:
        denoise(MODELS[variant], start, policies=dataclasses.replace(policies, cache=always))
    model_input = MODELS[variant].layout.model_input(start, start.initial)
    length = model_input.ids.shape[1]
    first = int(min(model_input.text_positions.min(), model_input.image_positions.min()))
    sizes = {"L": length, "A": length - first}
    assert computed.of(length) == [sizes[kind] for kind in expected]


def test_text_before_the_picture_computes_text_alone():
    """But for all of it, once more than half was decided."""
    start, own = prompt(), dataclasses.replace(OWN, order="text_first", text_steps=12)
    with Computed(MODELS["A"]) as computed:
        denoise(MODELS["A"], start, own)
    conditional = MODELS["A"].layout.model_input(start, start.initial).ids.shape[1]
    expected = [conditional if left in (12, 5) else left + 1 for left in range(12, 0, -1)]
    assert computed.of(conditional)[:12] == expected


def test_the_least_certain_of_the_picture_are_computed():
    policies = corrected_policies(MODELS["A"], prompt(), OWN)
    assert isinstance(policies.cache, CachePolicy)
    chosen = []

    class Spy(CachePolicy):
        def least_certain(self, image, last):
            found = super().least_certain(image, last)
            chosen.append((image, last.image_confidence.flatten(1), found))
            return found

    spy = Spy(policies.cache.text_branches, policies.cache.image_branches)
    denoise(MODELS["A"], prompt(), policies=dataclasses.replace(policies, cache=spy))
    assert len(chosen) > REFRESH_EVERY
    for image, confidence, found in chosen:
        asked = confidence.gather(1, image.index)
        assert found.sum() == -(-image.counts[0] // ONE_IN)
        if not found.all():
            assert asked[found].max() <= asked[~found].min()


@pytest.mark.parametrize("speed", ["cached", "fastest"])
def test_a_plan_that_does_not_know_its_counts_can_be_cached(speed):
    start, own = prompt(batch=2, locked=0.4), dataclasses.replace(OWN, speed=speed)
    expected = denoise(MODELS["A"], start, own).final
    policies = corrected_policies(MODELS["A"], start, own)
    steps = [
        dataclasses.replace(step, text_masked_before=None, image_masked_before=None)
        for step in policies.plan.steps
    ]
    plan = Plan.of(steps, 2, MODELS["A"].device)
    run = denoise(MODELS["A"], start, policies=dataclasses.replace(policies, plan=plan))
    assert (run.final.text != MASKED).all() and (run.final.image != MASKED).all()
    if speed == "cached":
        assert torch.equal(run.final.text, expected.text)
        assert torch.equal(run.final.image, expected.image)


def test_an_empty_answer_leaves_the_prompt_alone():
    nothing = torch.tensor([], dtype=torch.int64)
    assert prompt_length(ModelInput(torch.ones(1, 5, dtype=torch.int64), nothing, nothing)) == 5
    assert prompt_length(ModelInput(torch.ones(1, 5), nothing, torch.tensor([3, 4]))) == 3

"""A target: operations planned before a run are those that it takes, and the choice meets it."""

import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmada_parallel.benchmarks import target as benchmark
from mmada_parallel.benchmarks.flops import FlopCounter
from mmada_parallel.mmp_core import InputError, SamplerSettings, TokenState, denoise, operations
from mmada_parallel.mmp_core.batching import chosen_in_batches, denoise_in_batches
from mmada_parallel.mmp_core.operations import Operations, Pace, pace_of, planned_operations
from mmada_parallel.mmp_core.sampler.settings import GUIDANCES, Target
from mmada_parallel.mmp_core.target import CURVES, FACTORS, Reduction, chosen
from mmada_parallel.tests.hosts import PACK_ROOT
from mmada_parallel.tests.mmp_core import tiny

MODELS = {variant: tiny.TinyModel(variant) for variant in ("A", "M", "D", "8B")}
COUNTERS = {variant: FlopCounter(model.transformer) for variant, model in MODELS.items()}
OWN = SamplerSettings(text_steps=24, image_steps=12, joint_guidance=1.5)
PACE = Pace(each=0.01, per_operation=1e-7)
GUIDANCE = st.sampled_from((0.0, 1.5))


def prompt(variant="A", **options):
    return tiny.prompt(MODELS[variant].layout, **{"text": 12, "grid": (3, 4), **options})


@settings(max_examples=40)
@given(
    variant=st.sampled_from("AM"),
    scales=st.tuples(*(GUIDANCE for _ in GUIDANCES)),
    text_steps=st.integers(1, 20),
    image_steps=st.integers(1, 20),
    order=st.sampled_from(("parallel", "text_first", "image_first")),
    speed=st.sampled_from(("exact", "cached", "fast")),
    batch=st.integers(1, 3),
    locked=st.sampled_from((0.0, 0.4, 1.0)),
    image=st.booleans(),
)
def test_operations_are_known_before_a_run(
    variant, scales, text_steps, image_steps, order, speed, batch, locked, image
):
    chosen = SamplerSettings(
        **dict(zip(GUIDANCES, scales, strict=True)),
        text_steps=text_steps,
        image_steps=image_steps,
        order=order,
        speed=speed,
    )
    start = prompt(variant, batch=batch, locked=locked, image=image)
    planned = planned_operations(MODELS[variant], start, chosen)
    counter = COUNTERS[variant]
    counter.reset()
    run = denoise(MODELS[variant], start, chosen)
    assert run.operations == counter.total
    if speed == "fast":
        assert counter.total <= planned.total and counter.forwards <= planned.forwards
    else:
        assert (counter.total, counter.forwards) == (planned.total, planned.forwards)


@pytest.mark.parametrize("variant", ["D", "8B"])
@pytest.mark.parametrize("changes", [{}, {"speed": "cached"}, {"block_length": 4}])
def test_other_families_and_blocks_count_as_they_run(variant, changes):
    parts = {"text": 0, "image": False} if variant == "8B" else {}
    start, chosen = prompt(variant, **parts), replace(OWN, **changes)
    run = denoise(MODELS[variant], start, chosen)
    planned = planned_operations(MODELS[variant], start, chosen).total
    ends_early = "block_length" in changes
    assert run.operations <= planned and (ends_early or run.operations == planned)


def test_an_answer_of_text_alone_is_counted_and_reduced():
    model, words = MODELS["8B"], TokenState.masked(1, 6, (0, 0))
    codes = torch.zeros(1, 2, 2, dtype=torch.int64)
    start = model.layout.encode_task("describe", "what is there", codes, None, words)
    choice = chosen(model, start, OWN, Target(at_most_operations=50), PACE)
    run = denoise(model, start, choice.settings)
    assert run.operations == choice.operations.total <= choice.exact.total / 2


@pytest.mark.parametrize("share", [100, 60, 40, 25, 15, 8])
@pytest.mark.parametrize("speed", ["exact", "cached", "fast", "fastest"])
@pytest.mark.parametrize("variant", "AM")
def test_a_share_of_operations_is_kept_and_used(variant, speed, share):
    start, own = prompt(variant, batch=2), replace(OWN, speed=speed)
    choice = chosen(MODELS[variant], start, own, Target(at_most_operations=share), PACE)
    exact = denoise(MODELS[variant], start, OWN).operations
    run = denoise(MODELS[variant], start, choice.settings).operations
    assert run <= share / 100 * exact
    if speed in ("exact", "cached"):
        assert run == choice.operations.total and choice.exact.total == exact
        assert choice.percent == pytest.approx(100 * run / exact)


def test_what_needs_no_reduction_stays_as_it_is():
    for target in (Target(at_most_operations=100), Target(at_most_seconds=86400)):
        assert chosen(MODELS["A"], prompt(), OWN, target, PACE).settings == OWN
    finished = prompt(locked=1.0)
    choice = chosen(MODELS["A"], finished, OWN, Target(at_most_operations=1), PACE)
    assert choice.settings == OWN and choice.percent == 0


def test_a_larger_target_never_gives_what_ranks_lower():
    choices = [
        chosen(MODELS["A"], prompt(), OWN, Target(at_most_operations=share), PACE)
        for share in range(12, 101, 8)
    ]
    ranks = [choice.reduction.rank for choice in choices]
    assert ranks == sorted(ranks) and ranks[-1] == (True, 1.0, -1.0)
    assert {choice.reduction.cached for choice in choices} == {True, False}
    assert all(choice.reduction.guided for choice in choices if choice.percent > 10)


@pytest.mark.parametrize("seconds", [2.0, 1.0, 0.3])
def test_seconds_are_those_of_the_pace(seconds):
    choice = chosen(MODELS["A"], prompt(), OWN, Target(at_most_seconds=seconds), PACE)
    counter = COUNTERS["A"]
    counter.reset()
    denoise(MODELS["A"], prompt(), choice.settings)
    took = PACE.each * counter.forwards + PACE.per_operation * counter.total
    assert choice.seconds == pytest.approx(took) and took <= seconds
    assert choice.expected().endswith(f"about {round(took + 0.005, 2):.2g} s.")


def test_both_targets_hold():
    both = Target(at_most_seconds=0.6, at_most_operations=30)
    choice = chosen(MODELS["A"], prompt(), OWN, both, PACE)
    assert choice.seconds <= 0.6 and choice.percent <= 30


@pytest.mark.parametrize("name, low", [("at_most_operations", 0.01), ("at_most_seconds", 0.001)])
def test_an_impossible_target_names_the_least(name, low):
    said = f"^{name} is {low}.* takes ([0-9.]+) % of exact's operations and about ([0-9.]+) s: "
    with pytest.raises(InputError, match=said) as refused:
        chosen(MODELS["A"], prompt(), OWN, Target(**{name: low}), PACE)
    percent, seconds = re.findall(said, str(refused.value))[0]
    least = float({"at_most_operations": percent, "at_most_seconds": seconds}[name])
    choice = chosen(MODELS["A"], prompt(), OWN, Target(**{name: least}), PACE)
    one_step = replace(OWN, text_steps=1, image_steps=1, joint_guidance=0.0)
    assert choice.settings == one_step
    with pytest.raises(InputError):
        chosen(MODELS["A"], prompt(), OWN, Target(**{name: 0.9 * least}), PACE)


def test_targets_out_of_range_and_the_upstream_preset_are_refused():
    for wrong in (-1, float("nan"), 101):
        with pytest.raises(InputError, match="at_most_operations is"):
            Target(at_most_operations=wrong)
    upstream = SamplerSettings.upstream("A")
    with pytest.raises(InputError, match="upstream preset.*corrected preset, or"):
        chosen_in_batches(MODELS["A"], prompt(), upstream, Target(at_most_seconds=5))


class TwoAtOnce:
    """A budget for two samples."""

    def samples(self, estimate, batch):
        return min(2, batch)

    def prepare(self, estimate, samples):
        pass


def test_parts_of_a_batch_are_counted_and_what_a_run_took_corrects_the_next(monkeypatch):
    model, start, timed = tiny.TinyModel("A"), prompt(batch=5), []
    monkeypatch.setattr(
        operations, "_timed", lambda model, prompt: timed.append(prompt.batch) or replace(PACE)
    )
    target = Target(at_most_operations=40)
    choice = chosen_in_batches(model, start, OWN, target, TwoAtOnce())
    assert timed == [2] and "timed just now" in choice.expected()
    counter = FlopCounter(model.transformer)
    run = denoise_in_batches(model, start, choice.settings, budget=TwoAtOnce())
    assert counter.forwards == choice.operations.forwards
    assert run.operations == pytest.approx(choice.operations.total) and run.total_steps
    words = choice.took(run.operations, 2 * choice.seconds)
    assert words.startswith(f"Took {choice.expected().split()[1]} %")
    again = chosen_in_batches(model, start, OWN, target, TwoAtOnce())
    assert timed == [2] and again.seconds == pytest.approx(choice.seconds)
    assert "by the last run" in again.expected()
    before = again.seconds
    choice.took(run.operations / 2, 100.0)  # ended early: says nothing about a whole run
    assert again.seconds == before


def test_forwards_are_timed_once_for_a_size():
    model = tiny.TinyModel("A")
    pace = pace_of(model, prompt())
    asked = model.forwards
    assert pace.each >= 0 and pace.per_operation >= 0
    assert pace.seconds(Operations(1e9, 10)) > 0 and 2 <= asked <= 6
    assert pace_of(model, prompt()) is pace and model.forwards == asked
    assert pace_of(model, prompt(batch=2)) is not pace


def test_reductions_lie_on_the_measured_curves():
    assert CURVES[False, True][0] == 1.0
    for curve, measured in CURVES.items():
        assert len(measured) == len(FACTORS)
        values = [Reduction(factor, *curve).agreement for factor in (1.0, 1.3, 2.0, 5.0, 8.0, 99.0)]
        assert values == sorted(values, reverse=True)
        assert values[0] == measured[0] and values[-1] == min(measured)


def test_the_curves_are_those_of_the_published_results():
    file = PACK_ROOT / "benchmarks" / "results" / "target.json"
    results = json.loads(file.read_text(encoding="utf-8"))
    assert benchmark.curves(results["summary"]) == CURVES


def test_the_benchmark_counts_each_reduction(monkeypatch):
    from mmada_parallel.demo.evaluate import held_out
    from mmada_parallel.mmp_core import load_checkpoint

    few = [Reduction(), Reduction(4.0, True), Reduction(24.0, False, False)]
    monkeypatch.setattr(benchmark, "REDUCTIONS", few)
    model = load_checkpoint("demo", dtype=torch.float32)
    case = benchmark.one_case(model, held_out(1)[0])
    assert list(case) == ["1", "4 cached", "24 unguided"]
    assert case["1"][0] == 1.0 and case["1"][2] == 100.0
    assert case["24 unguided"][2] < case["4 cached"][2] < 50
    assert benchmark.summary({"0": case})["1"]["percent"] == 100.0

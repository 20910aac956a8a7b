"""Published accelerations as policies: with nothing left out they give the tokens of ``exact``."""

from dataclasses import replace

import pytest
import torch
from mmada_parallel.benchmarks import peers, peers_replay
from mmada_parallel.benchmarks.flops import FlopCounter
from mmada_parallel.benchmarks.peer_policies import DLLMCache, FactorSelection
from mmada_parallel.benchmarks.sampler import ours
from mmada_parallel.demo.evaluate import held_out, prompt_of
from mmada_parallel.mmp_core import MASKED, SamplerSettings, denoise, load_checkpoint
from mmada_parallel.mmp_core.sampler.positions import MaskedPositions, seeded_generators

FEW = replace(peers.BASE, text_steps=8, image_steps=4)


@pytest.fixture(scope="module")
def demo():
    model = load_checkpoint("demo", dtype=torch.float32)
    return model, FlopCounter(model.transformer), prompt_of(model, held_out(1)[0])


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(peers, "BASE", FEW)


def finished(state):
    return bool((state.text != MASKED).all() and (state.image != MASKED).all())


@pytest.mark.parametrize("name", [n for n in peers.METHODS if not n.startswith("steps")])
def test_every_method_ends_with_nothing_masked(demo, few_steps, name):
    final, taken = peers.run(demo[0], demo[1], name, demo[2])
    assert finished(final) and taken["gflop"] > 0


@pytest.mark.parametrize(
    "kind, change",
    [
        ("ML-Cache", peers._ml_cache(0.0)),
        ("dLLM-Cache", peers._cache(lambda: DLLMCache(1, 1))),
        ("dLLM-Cache", peers._cache(lambda: DLLMCache(99, 1, share=1.0))),
    ],
)
def test_a_cache_that_computes_all_changes_nothing(demo, few_steps, monkeypatch, kind, change):
    exact, plain = peers.run(demo[0], demo[1], "exact", demo[2])
    monkeypatch.setitem(peers.METHODS, "all", peers.Method(kind, change=change))
    final, taken = peers.run(demo[0], demo[1], "all", demo[2])
    assert torch.equal(final.text, exact.text) and torch.equal(final.image, exact.image)
    assert taken["gflop"] == pytest.approx(plain["gflop"])


def test_less_is_computed_where_a_cache_keeps_more(demo, few_steps, monkeypatch):
    monkeypatch.setitem(
        peers.METHODS,
        "more often",
        peers.Method("dLLM-Cache", change=peers._cache(lambda: DLLMCache(2))),
    )
    work = {
        name: peers.run(demo[0], demo[1], name, demo[2])[1]["gflop"]
        for name in ("exact", "more often", "dLLM-Cache 4", "ML-Cache 0.9")
    }
    assert work["exact"] > work["more often"] > work["dLLM-Cache 4"]
    assert work["exact"] > work["ML-Cache 0.9"]


def test_the_factor_rule_takes_the_largest_number_that_it_allows():
    tokens = torch.full((1, 4), MASKED)
    positions = MaskedPositions.of(tokens, None, torch.tensor([4]))
    selection = FactorSelection(SamplerSettings(), seeded_generators([0], tokens.device), 1.0)
    # 2·0.05, 3·0.2 and 4·0.24 are below 1, 5·0.5 is not.
    probability = torch.tensor([[0.8, 0.5, 0.95, 0.76]])
    assert selection._early(positions, probability).tolist() == [[True, False, True, True]]


def test_a_run_goes_on_where_it_was_stopped(demo, monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "METHODS", {n: peers.METHODS[n] for n in ("exact", "fast")})
    monkeypatch.setattr(peers, "BASE", FEW)
    file = tmp_path / "peers.json"
    first = peers.measure(demo[0], 1, file)
    assert peers.measure(demo[0], 2, file)["cases"]["0"] == first["cases"]["0"]
    both = peers.measure(demo[0], 2, file)
    assert both["done"] == 2 and both["summary"]["exact"]["identical"] == 1
    assert both["summary"]["fast"]["flop_ratio"] > 1


TINY = {"d_model": 64, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 96, "grid": 8, "text": 24}


@pytest.mark.parametrize("name", ["exact", "cached", "fastest", "ML-Cache 0.9", "Fast-dLLM 0.9"])
def test_a_replay_unmasks_what_the_demo_unmasked(demo, few_steps, name, monkeypatch):
    schedule = peers_replay.schedule_of(demo[0], demo[2], name)
    model, seen = ours(TINY, torch.device("cpu")), []
    prompt, work = model.prompt(TINY["grid"], TINY["text"]), FlopCounter(model.transformer)

    def watched(*args, **kwargs):
        run = denoise(*args, **{**kwargs, "record": None})
        seen.extend(
            (peers_replay.left(s.after.text), peers_replay.left(s.after.image)) for s in run.steps
        )
        return run

    monkeypatch.setattr(peers_replay, "denoise", watched)
    taken = peers_replay.replay(model, work, prompt, name, schedule)
    assert len(seen) == len(schedule)
    for step, (text, image) in zip(schedule, seen, strict=True):
        assert step.text is None or text == pytest.approx(step.text, abs=0.5 / TINY["text"])
        assert step.image is None or image == pytest.approx(step.image, abs=0.5 / TINY["grid"] ** 2)
    assert taken["forwards"] == peers.run(demo[0], demo[1], name, demo[2])[1]["forwards"]

import json
from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import InputError, SamplerSettings
from mmada_parallel.tests.training.adapted import stirred
from mmada_parallel.tests.training.tiny_cases import (
    QUICK,
    SAMPLER,
    brightness,
    cases,
    new_run,
    one_open,
    redness,
    state_of,
    tiny_model,
)
from mmada_parallel.training.loop.ranks import Ranks
from mmada_parallel.training.pararl import run as pararl
from mmada_parallel.training.pararl.log_probs import log_probs
from mmada_parallel.training.pararl.objective import RewardScale
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.scores import score
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.rewards.weighted import Weighted
from mmada_parallel.training.weights.policies import LoRA


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def as_it_was(model):
    yield
    for layer in model.transformer.modules():
        layer._forward_hooks.clear()


class Counting:
    """``reward``, remembering the pairs it was asked about."""

    def __init__(self, reward):
        self.reward, self.calls, self.pairs = reward, 0, []

    def __call__(self, pairs):
        self.calls += 1
        self.pairs += pairs
        return self.reward(pairs)


def first_is_code(model, code):
    """1 where the picture is that of the image code ``code`` at the open place."""
    from mmada_parallel.mmp_core import TokenState, decode_image

    image = torch.ones(1, 2, 2, dtype=torch.int64)
    image[0, 0, 1] = code
    wanted = decode_image(model, TokenState(torch.ones(1, 1, dtype=torch.int64), image))[0]

    def reward(pairs):
        return [float(pair.picture.tobytes() == wanted.tobytes()) for pair in pairs]

    return reward


BANDIT = replace(
    QUICK,
    steps=60,
    groups=1,
    group_size=16,
    scored_steps=1,
    learning_rate=0.05,
    micro_batch=16,
    kl=0.0,
    checkpoint_every=1000,
)


@pytest.mark.parametrize(
    "modality, at", [("text", "trajectory"), ("image", "trajectory"), ("image", "gain")]
)
def test_a_bandit_finds_the_arm_that_pays(modality, at, tmp_path):
    """One token to decide, one choice rewarded: its probability goes to 1."""
    model = tiny_model(tmp_path / "model")
    model.transformer.layers["ff_out"].weight *= 4  # the head is frozen, and could say no more
    case = one_open(model, modality)
    reward = redness if modality == "text" else first_is_code(model, 5)
    settings = replace(BANDIT, reward_at=at)
    run = new_run(model, tmp_path, settings, reward=reward, own=[case])
    seen = []
    run.train(lambda _, line: seen.append(line))
    assert seen[0]["reward_mean"] < 0.6
    assert min(line["reward_mean"] for line in seen[-5:]) >= 0.9
    steps = run._latest[0].steps
    assert reward(run.samples(1))[0] == 1
    assert float(log_probs(model, steps, run.settings.sampler)[0].detach().exp().mean()) > 0.9


def test_only_what_was_revealed_in_the_better_rollouts_becomes_likelier(model, tmp_path):
    run = new_run(model, tmp_path, replace(QUICK, learning_rate=1e-3, kl=0.0, clip_norm=1e9))
    rolled = run._roll_out(run.groups(), None)
    rewards = score(model, rolled, run.reward, run.settings).judged
    scale = RewardScale().including(torch.cat([r.flatten() for r in rewards]))
    found = [pararl.advantages(scale.normalise(r), 0.01) for r in rewards]

    def gain():
        total = 0.0
        for r, (advantage, _) in zip(rolled, found, strict=True):
            values, owner = log_probs(model, r.steps, run.settings.sampler)
            weights = pararl.token_weights(owner, len(r.steps))
            total += float((values * weights * advantage.flatten()[owner]).sum().detach())
        return total

    before = gain()
    run.advance()
    assert gain() > before


def test_rewards_are_asked_for_exactly_so_often(model, tmp_path):
    reward = Counting(brightness)
    run = new_run(model, tmp_path / "trajectory", reward=reward)
    first, second = run.advance(), run.advance()
    assert (first["reward_calls"], second["reward_calls"]) == (16, 32)  # 2 groups · 4 · 2 steps
    assert (reward.calls, len(reward.pairs)) == (2, 32)
    assert any(pair.progress < 1 for pair in reward.pairs)

    reward = Counting(brightness)
    output = replace(QUICK, reward_at="output")
    line = new_run(model, tmp_path / "output", output, reward=reward).advance()
    assert line["reward_calls"] == len(reward.pairs) == 8
    assert {pair.progress for pair in reward.pairs} == {1.0}


def test_gain_judges_a_step_by_what_it_changed(model, tmp_path):
    reward = Counting(brightness)
    settings = replace(QUICK, reward_at="gain")
    run = new_run(model, tmp_path, settings, reward=reward)
    rolled = run._roll_out(run.groups(), None)
    scores = score(model, rolled, reward, settings)
    assert (reward.calls, len(reward.pairs)) == (1, scores.calls)
    total = rolled[0].total_steps
    for r, rewards, judged in zip(rolled, scores.rewards, scores.judged, strict=True):
        groups, drawn, size = r.shape
        at = replace(settings, reward_at="trajectory")
        assert torch.equal(rewards, score(model, [r], brightness, at).rewards[0])
        steps = r.steps
        earlier = replace(r, steps=replace(steps, after=steps.state, index=steps.index - 1))
        before = score(model, [earlier], brightness, at).rewards[0]
        assert torch.equal(judged, rewards - before)
        assert judged.shape == (groups, drawn, size) and before.unique().numel() > 1
    assert {round(pair.progress * total) for pair in reward.pairs} <= set(range(total + 1))
    line = run.advance()
    assert line["reward_calls"] == len(reward.pairs) - scores.calls
    assert line["tokens"] > 0


def test_the_pair_before_a_step_is_scored_once(model, tmp_path):
    """It is that after the step before, where this one is scored, too."""
    reward = Counting(brightness)
    settings = replace(QUICK, reward_at="gain", scored_steps=100)
    run = new_run(model, tmp_path, settings, reward=reward)
    run.advance()
    total = run._latest[0].total_steps
    assert run.reward_calls == len(reward.pairs) == 8 * (total + 1)


def test_metrics_are_those_of_the_rewards(model, tmp_path):
    reward = Counting(brightness)
    line = new_run(model, tmp_path, reward=reward).advance()
    raw = brightness(reward.pairs)
    assert line["reward_mean"] == pytest.approx(float(raw.mean()), rel=1e-5)
    assert line["reward_std"] == pytest.approx(float(raw.std(correction=0)), rel=1e-4)
    assert 0 < line["normalised_reward"] < 1
    assert line["clip_fraction"] == 0 and line["kl"] == 0  # the first update of a new adapter
    assert line["tokens"] > 16 and line["grad_norm"] > 0
    assert 0 < line["text_length"] <= 4


def test_each_part_of_a_weighted_reward_is_told(model, tmp_path):
    reward = Weighted([(brightness, 1.0), (redness, 0.5)])
    line = new_run(model, tmp_path, reward=reward).advance()
    total = line["reward_brightness"] + 0.5 * line["reward_redness"]
    assert line["reward_mean"] == pytest.approx(total, rel=1e-5)


def test_groups_without_spread_are_skipped_and_counted(model, tmp_path):
    def same(pairs):
        return torch.ones(len(pairs))

    def only_edits(pairs):
        return brightness(pairs) * torch.tensor([p.case.name != "case 1" for p in pairs])

    run = new_run(model, tmp_path / "none", reward=same)
    before = state_of(run)
    line = run.advance()
    assert line["groups_skipped"] == 4 and line["tokens"] == line["grad_norm"] == 0
    assert all(torch.equal(before[name], value) for name, value in state_of(run).items())
    assert run.step == 1

    settings = replace(QUICK, groups=3)
    line = new_run(model, tmp_path / "some", settings, reward=only_edits).advance()
    assert line["groups_skipped"] == 2 and line["tokens"] > 0


def test_a_run_with_nothing_to_learn_from_at_first_ends_and_says_so(model, tmp_path):
    run = new_run(model, tmp_path, replace(QUICK, steps=50), reward=lambda pairs: [1] * len(pairs))
    with pytest.raises(InputError, match="scored the same in 10 steps.*raise text_temperature"):
        run.train()
    assert run.step == run.folder.saved_step == len(run.folder.lines()) == 10


def test_a_run_that_has_learnt_all_goes_on_to_its_end(model, tmp_path):
    def at_first(pairs):
        return brightness(pairs) if run.step == 0 else torch.ones(len(pairs))

    run = new_run(model, tmp_path, replace(QUICK, steps=12), reward=at_first)
    run.train()
    assert run.step == 12


def test_a_resumed_run_that_has_learnt_before_goes_on_to_its_end(model, tmp_path):
    settings, learning = replace(QUICK, steps=14), True

    def reward(pairs):
        return brightness(pairs) if learning else torch.ones(len(pairs))

    def stop(step, _):
        raise KeyboardInterrupt

    first = new_run(model, tmp_path, settings, reward=reward)
    with pytest.raises(KeyboardInterrupt):
        first.train(stop)
    first.policy.detach()
    learning = False
    resumed = new_run(model, tmp_path, settings, reward=reward)
    assert resumed.resume() and resumed.step == 1
    resumed.train()
    assert resumed.step == 14


def test_kl_of_an_adapter_trained_further_is_to_its_start(model, tmp_path):
    """Before anything is trained the policy is the reference, so that the divergence is 0."""
    with stirred(LoRA(model.transformer, rank=2)) as lora:
        start = {name: value.clone() for name, value in lora.state_dict().items()}
    policy = LoRA(model.transformer, rank=2, start=start)
    run = ParaRLRun(model, cases(model), brightness, QUICK, tmp_path, policy=policy)
    assert run.advance()["kl"] == pytest.approx(0, abs=1e-9)
    assert run.advance()["kl"] > 1e-6
    run.save()
    policy.detach()
    with pytest.raises(InputError, match="another adapter to train further"):
        new_run(model, tmp_path).resume()


def test_parts_of_a_weighted_reward_are_means_over_all_processes(model, tmp_path):
    """One process has judged one pair, the other two."""

    class Two(Ranks):
        count = 2

        def sum(self, values):
            return [mine + other for mine, other in zip(values, (1.0, 2.0), strict=True)]

    reward = Weighted([(lambda pairs: [0.0] * len(pairs), 1.0)])
    run = new_run(model, tmp_path, replace(QUICK, groups=2), reward=reward, ranks=Two())
    reward([None])
    assert list(run._reward_parts(1).values()) == [pytest.approx(1 / 3)]


@pytest.mark.parametrize("changed", [{"micro_batch": 1}, {"gradient_checkpointing": True}])
def test_memory_settings_do_not_change_the_update(changed, model, tmp_path):
    def after(settings, folder):
        run = new_run(model, folder, settings)
        run.train()
        run.policy.detach()
        return state_of(run)

    settings = replace(QUICK, steps=2, inner_epochs=2)
    one = after(settings, tmp_path / "one")
    other = after(replace(settings, **changed), tmp_path / "other")
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-5), name


def test_blocks_are_as_before_after_training(model, tmp_path):
    blocks = list(model.transformer.layers["blocks"])
    run = new_run(model, tmp_path, replace(QUICK, steps=1, gradient_checkpointing=True))
    during = []

    def look(phase, done, total):
        during.append((phase, "forward" in blocks[0].__dict__))

    run.train(progress=look)
    assert {patched for phase, patched in during if phase == "update"} == {True}
    assert {patched for phase, patched in during if phase != "update"} == {False}
    assert all("forward" not in block.__dict__ for block in blocks)


def test_a_host_in_inference_mode_can_train(model, tmp_path):
    with torch.inference_mode():
        run = new_run(model, tmp_path, replace(QUICK, steps=2, gradient_checkpointing=True))
        before = state_of(run)
        run.train(lambda *_: run.samples(1))
    assert any(not torch.equal(before[name], value) for name, value in state_of(run).items())


def test_inner_epochs_go_further_and_clip(model, tmp_path):
    settings = replace(QUICK, inner_epochs=6, learning_rate=0.1, clip=0.05)
    line = new_run(model, tmp_path, settings).advance()
    assert line["clip_fraction"] > 0 and line["kl"] > 0


def test_kl_holds_the_policy_to_the_base(model, tmp_path):
    def last_kl(folder, **changes):
        run = new_run(model, tmp_path / folder, replace(QUICK, learning_rate=0.05, **changes))
        for _ in range(6):
            line = run.advance()
        run.policy.detach()
        return line["kl"]

    assert last_kl("held", kl=5.0) < 0.5 * last_kl("loose", kl=1e-6)


def test_the_old_policy_as_reference_costs_no_forward(model, tmp_path):
    forwards = []
    hook = model.transformer.register_forward_hook(lambda *_: forwards.append(1))
    for reference in ("old", "base"):
        run = new_run(model, tmp_path / reference, replace(QUICK, kl_reference=reference))
        run.advance()
        forwards.append(None)
        run.policy.detach()
    hook.remove()
    text = "".join("." if f else "|" for f in forwards)
    old, base, _ = (len(part) for part in text.split("|"))
    assert old < base


def test_all_prompts_are_seen_before_any_returns(model, tmp_path):
    run = new_run(model, tmp_path, replace(QUICK, groups=2), own=cases(model, 6))
    seen = []
    for run.step in range(6):
        seen += [group.case.name for group in run.groups()]
    assert len(set(seen[:6])) == len(set(seen[6:])) == 6
    assert seen[:6] != seen[6:]


def test_reward_that_fails_is_told_and_the_run_is_kept(model, tmp_path):
    def broken(pairs):
        return [1.0] * (len(pairs) - 1)

    with pytest.raises(InputError, match="broken gave values of shape"):
        new_run(model, tmp_path, reward=broken).train()
    assert (tmp_path / "run.pt").is_file()


def test_progress_of_rollouts_goes_once_from_start_to_end(model, tmp_path):
    told = []
    run = new_run(model, tmp_path, replace(QUICK, groups=3))
    run.advance(lambda phase, done, total: told.append(done / total) if phase == "rollouts" else 0)
    assert told == sorted(told) and told[0] > 0 and told[-1] == 1
    assert len(set(told)) == len(told) > 4


def test_samples_are_pairs_of_the_last_step(model, tmp_path):
    shown = []
    run = new_run(model, tmp_path, replace(QUICK, steps=1, groups=3))
    run.train(lambda step, _: shown.extend(run.samples(2)))
    assert len(shown) == 2 and all(pair.progress == 1 and pair.picture.size for pair in shown)


@pytest.mark.parametrize(
    "bad",
    [
        {"group_size": 1},
        {"groups": 0},
        {"scored_steps": 0},
        {"inner_epochs": 0},
        {"clip": 0},
        {"kl": -1},
        {"reward_at": "end"},
        {"kl_reference": "new"},
        {"std_floor": 0.0},
        {"learning_rate": 0},
        {"steps": 0},
        {"schedule": "exponential"},
        {"micro_batch": 1.5},
        {"learning_rate": float("nan")},
        {"sampler": SamplerSettings.upstream("A")},
        {"sampler": SamplerSettings(speed="fast")},
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError):
        ParaRLSettings(**{"steps": 1, **bad})


def test_learning_rate_warms_up_and_falls():
    settings = ParaRLSettings(steps=10, learning_rate=1.0, warmup_steps=4, schedule="linear")
    rates = [settings.learning_rate_at(step) for step in range(10)]
    assert rates[0] == pytest.approx(0.25) and rates[5] == pytest.approx(0.5)
    assert rates[9] == pytest.approx(0.1)
    flat = replace(settings, schedule="constant")
    assert [flat.learning_rate_at(step) for step in (3, 9)] == [1.0, 1.0]


def test_metadata_tells_settings_and_seed(model, tmp_path):
    run = new_run(model, tmp_path, replace(QUICK, seed=7))
    about = run.metadata()
    assert about["training"] == "pararl" and about["steps"] == "0"
    assert about["reward"] == "brightness"
    told = json.loads(about["settings"])
    assert told["seed"] == 7 and told["sampler"]["text_steps"] == SAMPLER.text_steps
    assert all(isinstance(value, str) for value in about.values())

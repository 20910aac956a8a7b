import signal
from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import InputError, TokenState
from mmada_parallel.tests.training.tiny_cases import cases, state_of, tiny_model
from mmada_parallel.training.loop.run import recomputing
from mmada_parallel.training.sft import loss
from mmada_parallel.training.sft.batches import masked, stack
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import FullWeights, LoRA

SETTINGS = SFTSettings(
    steps=4,
    batch_size=6,
    learning_rate=1e-2,
    warmup_steps=0,
    micro_batch=4,
    gradient_checkpointing=False,
    drop_text=0.2,
    drop_image=0.2,
    drop_both=0.2,
)


@pytest.fixture
def model(tmp_path):
    return tiny_model(tmp_path / "model")


def with_targets(model, count=5):
    rng = torch.Generator().manual_seed(0)
    found = []
    for case in cases(model, count):
        text = torch.randint(1, 9, (1, 4), generator=rng)
        image = torch.randint(model.layout.codebook_size, (1, 2, 3), generator=rng)
        found.append(replace(case, target=TokenState(text, image)))
    return found


def run_of(model, folder, settings=SETTINGS, policy=None):
    policy = policy or LoRA(model.transformer, rank=2)
    return SFTRun(model, with_targets(model), settings, folder, policy=policy)


@pytest.mark.parametrize("kind", [FullWeights, LoRA])
def test_loss_falls(kind, model, tmp_path):
    settings = replace(SETTINGS, steps=40, drop_text=0.0, drop_image=0.0, drop_both=0.0)
    seen = []
    run = run_of(model, tmp_path, settings, kind(model.transformer))
    run.train(lambda _, line: seen.append(line))
    first, last = (sum(line["loss"] for line in part) / 5 for part in (seen[:5], seen[-5:]))
    assert last < 0.85 * first
    assert seen[0]["loss"] == pytest.approx(seen[0]["text_loss"] + seen[0]["image_loss"])


@pytest.mark.parametrize("kind", [FullWeights, LoRA])
@pytest.mark.parametrize("again", [False, True])
def test_parts_of_the_loss_do_not_change_the_update(kind, again, model, tmp_path, monkeypatch):
    """Matrix products of other shapes, and a sum of them, round otherwise in float32."""
    settings = replace(SETTINGS, drop_text=0.0, drop_image=0.0, drop_both=0.0)
    alike = with_targets(model)[::2]  # with a picture each
    batch, runs = stack([masked(case, settings, seed) for seed, case in enumerate(alike)]), []
    vocabulary = model.transformer.config.embedding_size
    parts = [part for _, part in kind(model.transformer).named_parameters()]
    for positions in (10**6, 7, 1):
        monkeypatch.setattr(loss, "LOGITS_AT_ONCE", positions * vocabulary)
        with recomputing(model.transformer, again):
            losses = loss.masked_losses(model.transformer, model.layout, batch)
            gradients = torch.autograd.grad(losses.text + losses.image, parts)
        runs.append([losses.text.detach(), losses.image.detach(), *gradients])
    for run in runs[1:]:
        for new, old in zip(run, runs[0], strict=True):
            assert torch.allclose(new, old, rtol=1e-5, atol=1e-6 * float(old.abs().max()))


def test_micro_batch_does_not_change_the_update(model, tmp_path):
    """Seen by losses and gradients, since AdamW makes much of what rounding does to small ones."""
    seen = {1: [], 100: []}
    for size, lines in seen.items():
        settings = replace(SETTINGS, micro_batch=size, learning_rate=1e-4)
        run = run_of(model, tmp_path / str(size), settings)
        run.train(lambda _, line, lines=lines: lines.append(line))
        run.policy.detach()
    for one, other in zip(*seen.values(), strict=True):
        for name in ("loss", "text_loss", "image_loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-3)


def test_resumed_run_equals_the_uninterrupted_one(model, tmp_path):
    whole = run_of(model, tmp_path / "whole")
    whole.train()
    whole.policy.detach()
    first = run_of(model, tmp_path / "broken", replace(SETTINGS, steps=2))
    first.train()
    first.policy.detach()
    resumed = run_of(model, tmp_path / "broken")
    assert resumed.resume() and resumed.step == 2
    resumed.train()
    found = state_of(resumed)
    assert all(torch.equal(value, found[name]) for name, value in state_of(whole).items())


@pytest.fixture
def ctrl_c():
    """Python's own handler, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def pressed_in_the_second_update(run, times):
    (optimizer,) = run.optimizers
    step = optimizer.step

    def pressed():
        for _ in range(times if run.step == 1 else 0):
            signal.raise_signal(signal.SIGINT)
        step()

    optimizer.step = pressed


def test_ctrl_c_in_an_update_waits_until_it_is_done(model, tmp_path, ctrl_c):
    whole = run_of(model, tmp_path / "whole")
    whole.train()
    whole.policy.detach()
    stopped = run_of(model, tmp_path / "broken")
    pressed_in_the_second_update(stopped, 1)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    stopped.policy.detach()
    assert stopped.step == stopped.folder.saved_step == 2
    assert [line["step"] for line in stopped.folder.lines()] == [1, 2]
    resumed = run_of(model, tmp_path / "broken")
    assert resumed.resume() and resumed.step == 2
    resumed.train()
    found = state_of(resumed)
    assert all(torch.equal(value, found[name]) for name, value in state_of(whole).items())
    assert signal.getsignal(signal.SIGINT) is ctrl_c


def test_a_second_ctrl_c_does_not_wait(model, tmp_path, ctrl_c):
    run = run_of(model, tmp_path, replace(SETTINGS, checkpoint_every=1))
    pressed_in_the_second_update(run, 2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.step == run.folder.saved_step == 1  # the update was cut in two
    assert signal.getsignal(signal.SIGINT) is ctrl_c


def test_a_case_without_target_is_named(model, tmp_path):
    with pytest.raises(InputError, match="case 1 has no target"):
        policy = LoRA(model.transformer, rank=2)
        own = with_targets(model)
        own[1] = cases(model)[1]
        SFTRun(model, own, SETTINGS, tmp_path, policy=policy)


def test_other_targets_are_other_data(model, tmp_path):
    run_of(model, tmp_path).save()
    run = run_of(model, tmp_path)
    run.cases[0] = replace(run.cases[0], target=run.cases[2].target)
    with pytest.raises(InputError, match="other data"):
        run.resume()


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"drop_text": -0.1}, {"drop_both": 0.9}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError):
        replace(SETTINGS, **bad)

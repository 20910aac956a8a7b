"""What happens between steps: losses on other items, adapters and samples that are kept."""

import shutil
from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import InputError
from mmada_parallel.mmp_core.checkpoint.adapters import read_adapter
from mmada_parallel.tests.training.test_sft_run import SETTINGS as BASIC
from mmada_parallel.tests.training.test_sft_run import with_targets
from mmada_parallel.tests.training.tiny_cases import new_run, state_of, tiny_model
from mmada_parallel.training.data.apart import origin_of, set_apart
from mmada_parallel.training.loop.curves import Measured, best_of, since_best, verdict
from mmada_parallel.training.loop.keeping import BEST, kept_adapters, kept_samples
from mmada_parallel.training.loop.watch import Watched
from mmada_parallel.training.sft import batches
from mmada_parallel.training.sft.held_out import fixed_loss
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.weights.policies import FullWeights, LoRA
from mmada_parallel.views.strip import samples_strip

EVERYTHING = replace(
    BASIC,
    steps=8,
    batch_size=3,
    schedule="cosine",
    ema=0.5,
    held_out=0.3,
    evaluate_every=2,
    keep_every=1,
    keep_last=2,
    guard_rise=10.0,
    checkpoint_every=3,
)


@pytest.fixture
def model(tmp_path):
    return tiny_model(tmp_path / "model")


def run_of(model, folder, settings=EVERYTHING, *, policy=None, count=9, guard=True, samples=1):
    items = with_targets(model, count)
    watched = Watched(
        guard=with_targets(model, 2)[1:] if guard else (),
        samples=items[:samples],
        strip=samples_strip,
    )
    policy = policy or LoRA(model.transformer, rank=2)
    return SFTRun(model, items, settings, folder, policy=policy, watched=watched)


def files_of(folder):
    """What adapters and samples hold; the order of a header's entries is anyone's guess."""
    held = {}
    for file in (*folder.glob("**/*.safetensors"), *folder.glob("samples/**/*.*")):
        held[file.relative_to(folder).as_posix()] = file.read_bytes()
        if file.suffix == ".safetensors":
            state, about = read_adapter(file)
            held[file.relative_to(folder).as_posix()] = (
                about,
                {name: tensor.numpy().tobytes() for name, tensor in state.items()},
            )
    return held


@pytest.mark.parametrize("killed", [1, 4, 5, 7])
def test_killed_at_any_moment_a_run_ends_with_the_same_files(killed, model, tmp_path):
    whole = run_of(model, tmp_path / "whole")

    def copied_as_if_killed(step, _):
        if step == killed:
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    whole.train(copied_as_if_killed)
    whole.policy.detach()
    resumed = run_of(model, tmp_path / "killed")
    resumed.resume()
    assert resumed.step <= killed
    resumed.train()
    assert resumed.watch.measured == whole.watch.measured
    assert all(torch.equal(v, state_of(resumed)[n]) for n, v in state_of(whole).items())
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_rehearsed_guard_items_are_not_those_that_are_measured(model, tmp_path, monkeypatch):
    guard = with_targets(model, 9)[5:]
    settings = replace(EVERYTHING, rehearsal=0.3, held_out=0.0, batch_size=4)
    watched = Watched(guard=guard)
    policy = LoRA(model.transformer, rank=2)
    items = with_targets(model, 5)
    run = SFTRun(model, items, settings, tmp_path, policy=policy, watched=watched)
    rehearsed, measured = (
        {origin_of(c) for c in part} for part in (run.rehearsed, run.watch.watched.guard)
    )
    assert len(rehearsed) == len(measured) == 2 and not rehearsed & measured
    seen = []
    masked = batches.masked
    monkeypatch.setattr(batches, "masked", lambda case, *a: seen.append(case) or masked(case, *a))
    run._batches()
    assert [origin_of(case) in rehearsed for case in seen] == 3 * [False] + [True]
    other = SFTRun(
        model, items, settings, tmp_path, policy=policy, watched=Watched(guard=guard[::-1])
    )
    assert {origin_of(case) for case in other.rehearsed} == rehearsed
    with pytest.raises(InputError, match="guard items of two pictures at least"):
        SFTRun(model, items, settings, tmp_path, policy=policy, watched=Watched(guard=guard[:1]))


def test_interrupted_while_it_measures_it_measures_again(model, tmp_path):
    whole = run_of(model, tmp_path / "whole")
    whole.train()
    whole.policy.detach()
    seen = []

    def stop(phase, done, total):
        seen.append(phase)
        if seen.count("guard items") > 3:
            raise KeyboardInterrupt

    broken = run_of(model, tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        broken.train(progress=stop)
    broken.policy.detach()
    resumed = run_of(model, tmp_path / "broken")
    assert resumed.resume()
    resumed.train()
    assert resumed.watch.measured == whole.watch.measured
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


def test_the_newest_adapters_and_the_best_are_kept(model, tmp_path):
    run = run_of(model, tmp_path)
    run.watch._measure = lambda step, progress: run.watch.measured.append(
        Measured(step, {0: 1.0, 2: 0.4, 4: 0.5}.get(step, 0.6), 1.0)
    )
    run.train()
    assert list(kept_adapters(tmp_path)) == [2, 7, 8] and run.watch.best.step == 2
    best = (tmp_path / BEST).read_bytes()
    assert best == kept_adapters(tmp_path)[2].read_bytes()
    state, about = read_adapter(tmp_path / BEST)
    assert about["steps"] == "2" and about["held_out_loss"] == "0.4" and about["guard_loss"] == "1"
    last, _ = read_adapter(kept_adapters(tmp_path)[8])
    with run.averaged():
        assert all(torch.equal(value, last[name]) for name, value in state_of(run).items())
    assert any(not torch.equal(value, last[name]) for name, value in state.items())


def test_without_named_adapters_the_best_is_kept_all_the_same(model, tmp_path):
    run = run_of(model, tmp_path, replace(EVERYTHING, keep_every=0))
    run.train()
    assert run.watch.best and list(kept_adapters(tmp_path)) == [run.watch.best.step]


def test_samples_are_kept_with_their_text_and_drawn_over_time(model, tmp_path):
    run_of(model, tmp_path, replace(EVERYTHING, samples_every=3), samples=2).train()
    assert list(kept_samples(tmp_path)) == [0, 3, 6, 8]
    for folder in kept_samples(tmp_path).values():
        assert {f.name for f in folder.iterdir()} == {"1.png", "1.txt", "2.png", "2.txt"}
    assert samples_strip(tmp_path).width > 4 * 128
    assert (tmp_path / "samples" / "strip.png").is_file()


def test_a_strip_has_gaps_where_samples_are_gone_or_were_not_drawn_yet(model, tmp_path):
    run_of(model, tmp_path, replace(EVERYTHING, samples_every=3), samples=2).train()
    whole = samples_strip(tmp_path)
    before, *_ = kept_samples(tmp_path).values()
    (before / "2.png").unlink()
    (before / "2.txt").unlink()
    gaps = samples_strip(tmp_path)
    assert gaps.size == whole.size and gaps.tobytes() != whole.tobytes()


def test_patience_ends_a_run_and_more_patience_goes_on(model, tmp_path):
    settings = replace(EVERYTHING, patience=1, ema=0.0, guard_rise=0.0)
    run = run_of(model, tmp_path, settings)
    run.watch._measure = lambda step, progress: run.watch.measured.append(Measured(step, 1.0, 1.0))
    run.train()
    assert run.step == 2
    run.policy.detach()
    again = run_of(model, tmp_path, settings)
    assert again.resume()
    again.train()
    assert again.step == 2
    again.policy.detach()
    longer = run_of(model, tmp_path, replace(settings, patience=0))
    assert longer.resume()
    longer.train()
    assert longer.step == 8


def test_what_is_held_out_is_never_trained_on(model):
    items = with_targets(model, 10)
    twice = [*items, *(replace(case, name=f"{case.name} again") for case in items)]
    kept, held_out = set_apart(twice, 0.3, items[:1])
    origins = {origin_of(case) for case in held_out}
    assert len(held_out) == len(origins) == 1 + 3 and len(kept) == 20 - 2 * 4
    assert not origins & {origin_of(case) for case in kept}
    assert {c.name for c in set_apart(twice[::-1], 0.3, items[:1])[0]} == {c.name for c in kept}
    with pytest.raises(InputError, match="Nothing is left"):
        set_apart(items[:1], 0.5, ())
    with pytest.raises(InputError, match="Nothing is left"):
        set_apart(items, 0.0, items)


def test_the_loss_is_measured_with_masks_that_stay_the_same(model):
    items = with_targets(model, 5)
    first = fixed_loss(model, items, micro_batch=4)
    assert first == fixed_loss(model, items, micro_batch=4)
    assert first == pytest.approx(fixed_loss(model, items[::-1], micro_batch=3), rel=1e-5)
    with torch.no_grad():
        next(iter(model.transformer.parameters())).mul_(1.1)
    assert first != fixed_loss(model, items, micro_batch=4)


def test_held_out_items_of_rewards_are_measured_by_the_reward(model, tmp_path):
    run = new_run(model, tmp_path)
    settings = replace(run.settings, steps=2, held_out=0.4, evaluate_every=1)
    run.policy.detach()
    seen = []
    run = new_run(model, tmp_path, settings)
    run.train(lambda step, metrics: seen.append(metrics))
    assert len(run.cases) == 2 and [m.step for m in run.watch.measured] == [0, 1, 2]
    assert seen[0]["held_out_reward"] == -run.watch.measured[1].held_out
    assert "held-out reward" in run.watch.verdict()


@pytest.mark.parametrize(
    "curve, rise, best, waited",
    [
        ([(1, 1), (0.5, 1.05), (0.4, 1.3), (0.6, 1.0)], 0.1, 1, 2),
        ([(1, 1), (0.5, 1.05), (0.4, 1.3), (0.6, 1.0)], 0.5, 2, 1),
        ([(1, 0.001), (0.5, 0.0059), (0.4, 0.0061)], 0.1, 1, 1),
        ([(1, 1), (1.5, 1.0)], 0.1, None, 1),
        ([(1, 1), (0.5, 2.0)], 0.1, None, 1),
        ([(None, 1), (None, 1.05), (None, 1.2)], 0.1, 1, 1),
        ([(1, None), (0.5, None), (0.5, None)], 0.1, 1, 1),
    ],
)
def test_the_best_is_the_lowest_that_has_not_forgotten(curve, rise, best, waited):
    measured = [Measured(step, *losses) for step, losses in enumerate(curve)]
    found = best_of(measured, rise)
    assert (found and found.step) == best and since_best(measured, rise) == waited


@pytest.mark.parametrize(
    "curve, words",
    [
        ([(1, 1)], "not begun"),
        (
            [(1, 1), (0.5, 1.05)],
            "loss 0.5, at the start 1: learning.\nguard loss 1.05, at the start",
        ),
        ([(1, 1), (0.5, 1.0), (0.7, 1.5)], "no longer learning, it was 0.5 after step 1"),
        ([(1, 1), (0.5, 1.0), (0.7, 1.5)], "(+50%): forgetting; a lower learning rate"),
        ([(1, 0.001), (0.5, 8)], "guard loss 8, at the start 0.001 (8000 times): forgetting"),
        ([(1, 1), (1.2, 0.9)], "not learning, it was better at the start.\nguard loss 0.9"),
    ],
)
def test_the_curves_are_put_into_words(curve, words):
    measured = [Measured(step, *losses) for step, losses in enumerate(curve)]
    assert words in verdict(measured, 0.1)


def test_a_run_of_the_version_before_goes_on_or_is_refused(model, tmp_path):
    run = run_of(model, tmp_path, BASIC, guard=False, samples=0)
    run.save()
    run.policy.detach()
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    for name in ("measured", "watched"):
        del state[name]
    new = ("keep_every", "keep_last", "held_out", "evaluate_every", "guard_rise", "patience")
    for name in (*new, "samples_every"):
        del state["settings"][name]
    torch.save(state, tmp_path / "run.pt")
    refused = run_of(model, tmp_path, replace(BASIC, held_out=0.3), guard=False, samples=0)
    with pytest.raises(InputError, match=r"begun with held_out 0.0, not 0.3"):
        refused.resume()
    refused.policy.detach()
    resumed = run_of(model, tmp_path, replace(BASIC, keep_every=1, evaluate_every=1))
    assert resumed.resume()
    resumed.train()
    assert [m.step for m in resumed.watch.measured] == [0, 1, 2, 3, 4]


def test_other_watched_items_are_refused(model, tmp_path):
    run = run_of(model, tmp_path)
    run.train()
    run.policy.detach()
    with pytest.raises(InputError, match="other held-out or guard items"):
        run_of(model, tmp_path, guard=False).resume()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"patience": 3, "held_out": 0.0}, "patience needs held-out items"),
        ({"held_out": 0.95}, "held_out is 0.95"),
    ],
)
def test_what_cannot_be_watched_is_told(changed, message, model, tmp_path):
    with pytest.raises(InputError, match=message):
        run_of(model, tmp_path, replace(EVERYTHING, **changed))


def test_all_weights_are_measured_but_not_kept(model, tmp_path):
    with pytest.raises(InputError, match="keep_every keeps adapters"):
        run_of(model, tmp_path, policy=FullWeights(model.transformer))
    settings = replace(EVERYTHING, keep_every=0, steps=2)
    run = run_of(model, tmp_path, settings, policy=FullWeights(model.transformer))
    run.train()
    assert len(run.watch.measured) == 2 and not kept_adapters(tmp_path)


def test_adapters_of_a_run_without_a_state_are_not_lost(model, tmp_path):
    run = run_of(model, tmp_path, replace(EVERYTHING, steps=2))
    run.train()
    run.policy.detach()
    (tmp_path / "run.pt").unlink()
    with pytest.raises(InputError, match="holds adapters of another run"):
        run_of(model, tmp_path).train()

"""Training from nothing: the options that only it needs, interrupted and resumed."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core.errors import InputError
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.training.loop.folder import RunFolder
from mmada_parallel.training.loop.optimizers import OPTIMIZERS
from mmada_parallel.training.sft.settings import SFTSettings

SETTINGS = SFTSettings(
    steps=6,
    batch_size=6,
    learning_rate=1e-2,
    schedule="linear",
    decay_steps=2,
    warmup_steps=2,
    optimizer="muon",
    weight_decay=0.01,
    ema=0.9,
    window=2,
    micro_batch=4,
    gradient_checkpointing=False,
    checkpoint_every=2,
    drop_text=0.2,
    drop_image=0.2,
    drop_both=0.2,
)


def weights(run):
    return {name: value.clone() for name, value in run.policy.state_dict().items()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ConnectionAbortedError])
@pytest.mark.parametrize("step", [3, 4])
def test_resumed_run_equals_the_uninterrupted_one(step, stop, from_nothing, tmp_path):
    whole = from_nothing(tmp_path / "whole", SETTINGS)
    whole.train()

    def interrupt(done, _):
        if done == step:
            raise stop

    broken = from_nothing(tmp_path / "broken", SETTINGS)
    with pytest.raises(stop):
        broken.train(interrupt)
    resumed = from_nothing(tmp_path / "broken", SETTINGS)
    assert resumed.resume() and resumed.step == step
    resumed.train()
    assert_equal(weights(resumed), weights(whole))
    with resumed.averaged(), whole.averaged():
        assert_equal(weights(resumed), weights(whole))
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


@pytest.mark.parametrize("place", ["first optimizer", "second optimizer", "average"])
def test_an_update_cut_in_two_by_ctrl_c_is_not_saved(place, from_nothing, tmp_path):
    run = from_nothing(tmp_path, SETTINGS)
    assert len(run.optimizers) == 2

    def cut(done):
        def cut(*arguments):
            done(*arguments)
            if run.step >= 3:
                raise KeyboardInterrupt

        return cut

    if place == "average":
        run.average.update = cut(run.average.update)
    else:
        optimizer = run.optimizers[place == "second optimizer"]
        optimizer.step = cut(optimizer.step)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    resumed = from_nothing(tmp_path, SETTINGS)
    assert resumed.resume() and resumed.step == 2
    resumed.train()
    whole = from_nothing(tmp_path / "whole", SETTINGS)
    whole.train()
    assert_equal(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 7},
        {"window": 1},
        {"seed": 1},
        {"optimizer": "adamw"},
        {"ema": 0.0},
        {"bf16": True},
    ],
)
def test_a_run_is_resumed_with_what_it_was_begun_with(changed, from_nothing, tmp_path):
    from_nothing(tmp_path, SETTINGS).save()
    with pytest.raises(InputError, match=f"begun with {next(iter(changed))} "):
        from_nothing(tmp_path, replace(SETTINGS, **changed)).resume()


def test_a_run_of_an_earlier_version_is_refused(from_nothing, tmp_path):
    run = from_nothing(tmp_path, SETTINGS)
    run.save()
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    state["optimizer"] = state.pop("optimizers")[0]
    torch.save(state, tmp_path / "run.pt")
    with pytest.raises(InputError, match=r"run.pt was begun by an earlier version: .*elsewhere\.$"):
        run.resume()


DAMAGE = {
    "step below 0": {"step": -1},
    "step beyond all": {"step": 10**30},
    "no settings": {"settings": None},
    "no data": {"data": ...},
    "a setting that is a tensor": {"settings": asdict(SETTINGS) | {"ema": torch.zeros(2)}},
    "no policy": {"policy": ...},
    "a policy of texts": {"policy": {"a": "b"}},
    "no optimizers": {"optimizers": []},
    "an optimizer without groups": {"optimizers": [{"state": {}}] * 2},
    "an optimizer of lists": {"optimizers": [[], []]},
    "no average": {"average": {}},
    "a measurement of texts": {"measured": [["a", "b", "c"]], "watched": [[], []]},
    "half a measurement": {"measured": [[0, 1.5]], "watched": [[], []]},
    "measured, but on what is missing": {"measured": [[0, 1.5, None]], "watched": ...},
}


@pytest.mark.parametrize("changed", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_refused(changed, from_nothing, tmp_path):
    run = from_nothing(tmp_path, SETTINGS)
    run.save()
    state = torch.load(tmp_path / "run.pt", weights_only=True) | changed
    torch.save({k: v for k, v in state.items() if v is not ...}, tmp_path / "run.pt")
    with pytest.raises(InputError, match=r"run\.pt cannot be read .*elsewhere\.$"):
        run.resume()


@pytest.mark.parametrize("name", ["exp_avg", "momentum_buffer"])
@pytest.mark.parametrize("value", ["a", torch.ones(3), torch.ones(1, dtype=torch.int64), None])
def test_moments_that_do_not_fit_are_refused(value, name, from_nothing, tmp_path):
    run = from_nothing(tmp_path, replace(SETTINGS, steps=1))
    run.train()
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    for optimizer in state["optimizers"]:
        for moments in optimizer["state"].values():
            moments |= {name: value} if name in moments else {}
    torch.save(state, tmp_path / "run.pt")
    with pytest.raises(InputError, match=r"run\.pt cannot be read"):
        run.resume()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_loss_falls(optimizer, from_nothing, tmp_path):
    settings = replace(
        SETTINGS, steps=30, batch_size=16, learning_rate=3e-3, optimizer=optimizer, window=1
    )
    lines = []
    from_nothing(tmp_path, settings).train(lambda _, line: lines.append(line))
    first, last = (sum(x["loss"] for x in part) / 5 for part in (lines[:5], lines[-5:]))
    assert last < 0.8 * first


def test_averaged_weights_are_the_exponential_average(from_nothing, tmp_path):
    run, wanted = from_nothing(tmp_path, SETTINGS), None
    wanted = weights(run)

    def follow(step, _):
        decay = min(0.9, step / (step + 10))
        for name, value in weights(run).items():
            wanted[name] = decay * wanted[name] + (1 - decay) * value

    run.train(follow)
    last = weights(run)
    with run.averaged():
        for name, value in weights(run).items():
            assert torch.allclose(value, wanted[name], atol=1e-6), name
    assert_equal(weights(run), last)


def test_learning_rate_warms_up_holds_and_falls_to_zero():
    settings = SFTSettings(
        steps=100, warmup_steps=10, decay_steps=20, learning_rate=1.0, schedule="linear"
    )
    rates = [settings.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5) and rates[100] == 0


def test_file_is_whole_or_absent(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.bin") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with replacing(tmp_path / "a.bin") as path:
        path.write_bytes(b"whole")
    assert os.listdir(tmp_path) == ["a.bin"]


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path):
    names = ["run.pt", "samples/strip.png", "adapters/step-00002.safetensors", "votes/a/votes.json"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with suppress(RuntimeError), replacing(tmp_path / name) as path:
            path.rename(path.with_name(path.name + "."))  # as SIGKILL leaves it
            raise RuntimeError
        left = path.with_name(path.name + ".")
        left.rename(path)
    mine = [tmp_path / name for name in (".notes", ".hidden.txt", "samples/1.png", ".a.LONGNAME")]
    for file in mine:
        file.write_text("kept")
    assert len([f for f in tmp_path.rglob("*") if f.is_file()]) == len(names) + len(mine)
    with RunFolder(tmp_path).held():
        pass
    left = {file for file in tmp_path.rglob("*") if file.is_file()} - {tmp_path / ".lock"}
    assert left == set(mine)


def test_8_bit_adamw_is_bitsandbytes_or_plain(monkeypatch, from_nothing, tmp_path, caplog):
    plain = from_nothing(tmp_path / "plain", replace(SETTINGS, optimizer="adamw"))
    plain.train()
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    small = from_nothing(tmp_path / "8bit", replace(SETTINGS, optimizer="adamw8bit"))
    assert "plain adamw here" in caplog.text
    small.train()
    assert_equal(weights(small), weights(plain))
    made = []
    fake = SimpleNamespace(AdamW8bit=lambda p, **options: made.append(options))
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=fake))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", fake)
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    OPTIMIZERS["adamw8bit"]({"weight": on_gpu}, replace(SETTINGS, weight_decay=0.5))
    assert made == [{"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.5}]
    OPTIMIZERS["adamw8bit"](small.parameters, SETTINGS)
    assert len(made) == 1  # not on a CPU


@pytest.mark.parametrize("decay, falls", [(0, [1.0, 0.5, 0.0]), (4, [1.0, 1.0, 0.0])])
def test_a_cosine_falls_from_the_whole_rate_to_none(decay, falls):
    settings = SFTSettings(
        steps=8, learning_rate=1.0, schedule="cosine", decay_steps=decay, warmup_steps=0
    )
    rates = [settings.learning_rate_at(step) for step in (0, 4, 8)]
    assert rates == pytest.approx(falls)

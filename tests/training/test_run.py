import json
import os
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
from mmada_parallel.mmp_core.errors import InputError
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.tests.training.worker import one_step, weights
from mmada_parallel.training.sft.pretrain import SFTRun, SFTSettings

SETTINGS = SFTSettings(
    steps=4,
    batch_size=6,
    warmup_steps=2,
    decay_steps=2,
    bf16=False,
    checkpoint_every=2,
    log_every=1,
    drop_text=0.2,
    drop_image=0.2,
    drop_both=0.2,
)


def test_resumed_run_equals_the_uninterrupted_one(model, layout, dataset, tmp_path):
    start = {k: v.clone() for k, v in model.state_dict().items()}

    def new_run(folder):
        folder.mkdir(exist_ok=True)
        model.load_state_dict(start)
        return SFTRun(model, layout, dataset, SETTINGS, folder)

    whole = new_run(tmp_path / "whole")
    whole.train()
    wanted, wanted_average = weights(whole), whole.average

    def die(step, _):
        if step == 3:
            raise ConnectionAbortedError

    broken = new_run(tmp_path / "broken")
    with pytest.raises(ConnectionAbortedError):
        broken.train(die)
    resumed = new_run(tmp_path / "broken")
    assert resumed.resume() and resumed.step == 2
    resumed.train()
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, wanted[name]), name
        assert torch.equal(resumed.average[name], wanted_average[name]), name
    losses = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    again = [json.loads(line) for line in (tmp_path / "broken/log.jsonl").read_text().splitlines()]
    assert [x["text_loss"] for x in again] == [x["text_loss"] for x in losses]


@pytest.mark.parametrize("changed", [{"batch_size": 7}, {"window": 2}, {"seed": 1}])
def test_a_run_is_resumed_with_the_examples_it_was_begun_with(
    changed, model, layout, dataset, tmp_path
):
    SFTRun(model, layout, dataset, SETTINGS, tmp_path).save()
    with pytest.raises(InputError, match=f"begun with {next(iter(changed))}"):
        SFTRun(model, layout, dataset, replace(SETTINGS, **changed), tmp_path).resume()


def test_loss_falls(model, layout, dataset, tmp_path):
    settings = SFTSettings(
        steps=30,
        batch_size=16,
        warmup_steps=5,
        decay_steps=5,
        learning_rate=3e-3,
        bf16=False,
        log_every=10,
        ema=0.9,
    )
    seen = []
    SFTRun(model, layout, dataset, settings, tmp_path).train(lambda _, line: seen.append(line))
    assert seen[-1]["text_loss"] < 0.8 * seen[0]["text_loss"]
    assert seen[-1]["image_loss"] < seen[0]["image_loss"]


def test_learning_rate_warms_up_holds_and_falls_to_zero():
    settings = SFTSettings(steps=100, warmup_steps=10, decay_steps=20, learning_rate=1.0)
    rates = [settings.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5) and rates[100] == 0


def test_gradient_that_is_not_finite_ends_in_one_sentence(model, layout, dataset, tmp_path):
    run = SFTRun(model, layout, dataset, SETTINGS, tmp_path)
    with torch.no_grad():
        model.layers["ln_f"].weight[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        run.train()
    assert not run.state_file.exists()


def test_file_is_whole_or_absent(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.bin") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with replacing(tmp_path / "a.bin") as path:
        path.write_bytes(b"whole")
    assert os.listdir(tmp_path) == ["a.bin"]


def test_ranks_stay_equal_and_only_the_first_writes(model, layout, dataset, tmp_path):
    context = mp.get_context("spawn")
    queue = context.Queue()
    common = (tmp_path / "rendezvous", model, layout, dataset, SETTINGS, tmp_path, queue)
    workers = [context.Process(target=one_step, args=(rank, *common)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
    for name in found[0]:
        assert (found[0][name] == found[1][name]).all(), name
    saved = torch.load(tmp_path / "run.pt", weights_only=True)["model"]
    assert os.listdir(tmp_path).count("run.pt") == 1
    for name, tensor in saved.items():
        assert (tensor.numpy() == found[0][name]).all(), name

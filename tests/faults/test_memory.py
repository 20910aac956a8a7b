"""Memory that runs out, or a stop, at any operation: a result as if nothing had been, or one
sentence, and the model gives what it gave before."""

import random
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from mmada_parallel.mmp_core import (
    InputError,
    SamplerSettings,
    TokenState,
    decode_image,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.batching import denoise_in_batches
from mmada_parallel.tests.hostile.readers import RED
from mmada_parallel.tests.mmp_core import tiny
from mmada_parallel.tests.training.tiny_cases import cases
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import LoRA
from torch.utils._python_dispatch import TorchDispatchMode

SETTINGS = SamplerSettings(seed=3, text_steps=2, image_steps=2, text_temperature=1.0)
FEW = 5
SFT = SFTSettings(
    steps=3, batch_size=2, micro_batch=1, gradient_checkpointing=False, warmup_steps=0
)
TARGET = TokenState(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[[1, 2, 3], [3, 2, 1]]]))


class Failing(TorchDispatchMode):
    """Raises ``error`` at operation ``at``, from 0; ``count``: those that were begun."""

    def __init__(self, at=-1, error=torch.OutOfMemoryError, times=1):
        super().__init__()
        self.at, self.error, self.left, self.count = at, error, times, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.left and self.count > self.at >= 0:
            self.left -= 1
            raise self.error("out of memory")
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("faults") / "A", "A")


def edit(folder, model=None):
    model = model or load_checkpoint(folder, dtype=torch.float32)
    prompt = encode_instruction(model, "make it red", RED, batch=2)
    final = denoise_in_batches(model, prompt, SETTINGS).final
    picture = decode_image(model, final)[0]
    return [final.text.tolist(), final.image.tolist(), picture.tobytes()]


def operations(run):
    with Failing() as counter:
        run()
    return counter.count


def places(run, number):
    count = operations(run)
    return sorted(random.Random(0).sample(range(count), number)) if number else range(count)


def runs_out(folder, number=None):
    """At ``number`` operations of an edit, or all."""
    model = load_checkpoint(folder, dtype=torch.float32)
    usual = edit(folder, model)
    for at in places(lambda: edit(folder, model), number):
        # Else a batch of two, one by one. Nodes and command say this error in one sentence.
        with suppress(torch.OutOfMemoryError), Failing(at):
            assert edit(folder, model) == usual, at
        assert edit(folder, model) == usual, at


def stopped(folder, number=None):
    model = load_checkpoint(folder, dtype=torch.float32)
    usual = edit(folder, model)
    for at in places(lambda: edit(folder, model), number):
        with pytest.raises(KeyboardInterrupt), Failing(at, KeyboardInterrupt):
            edit(folder, model)
        assert edit(folder, model) == usual, at


def test_an_edit_that_runs_out_of_memory(folder):
    runs_out(folder, FEW)


def test_an_edit_that_is_stopped(folder):
    stopped(folder, FEW)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fails", [runs_out, stopped])
def test_at_every_operation(folder, fails):
    fails(folder)


def test_denoising_halves_the_batch_or_says_so_in_one_sentence(folder):
    model = load_checkpoint(folder, dtype=torch.float32)
    prompt = encode_instruction(model, "make it red", RED, batch=2)
    usual = denoise_in_batches(model, prompt, SETTINGS).final
    count = operations(lambda: denoise_in_batches(model, prompt, SETTINGS))
    with Failing(count // 2):
        final = denoise_in_batches(model, prompt, SETTINGS).final
    assert torch.equal(final.text, usual.text) and torch.equal(final.image, usual.image)
    with Failing(count // 2, times=10**9), pytest.raises(InputError, match="Memory ran out"):
        denoise_in_batches(model, prompt, SETTINGS)


def test_training_stopped_anywhere_ends_as_undisturbed(folder, tmp_path):
    training_stopped(folder, tmp_path, FEW)


@pytest.mark.exhaustive
def test_training_stopped_at_every_operation(folder, tmp_path):
    training_stopped(folder, tmp_path)


def training_stopped(folder, tmp_path, number=None):
    def start(name):
        model = load_checkpoint(folder, dtype=torch.float32)
        torch.manual_seed(0)
        policy = LoRA(model.transformer, rank=2)
        targets = [replace(case, target=TARGET) for case in cases(model)]
        return SFTRun(model, targets, SFT, tmp_path / name, policy=policy)

    def weights(run):
        return {name: tensor.clone() for name, tensor in run.policy.state_dict().items()}

    whole = start("whole")
    whole.train()
    usual = weights(whole)
    counted = start("counted")
    for at in places(counted.train, number):
        for error in (KeyboardInterrupt, torch.OutOfMemoryError):
            name = f"{at}-{error.__name__}"
            run = start(name)
            with Failing(at, error), suppress(error, InputError):
                run.train()
            after = start(name)
            after.resume()
            after.train()
            assert all(torch.equal(usual[key], value) for key, value in weights(after).items()), (
                name
            )

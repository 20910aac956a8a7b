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
from mmada_parallel.tests.training.tiny_cases import QUICK, cases, new_run
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import LoRA
from torch.utils._python_dispatch import TorchDispatchMode

SETTINGS = SamplerSettings(seed=3, text_steps=2, image_steps=2, text_temperature=1.0)
FEW = 5
SFT = SFTSettings(
    steps=3, batch_size=2, micro_batch=1, gradient_checkpointing=False, warmup_steps=0
)
PARARL = replace(QUICK, steps=2)
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


def places(count, number):
    return sorted(random.Random(0).sample(range(count), number)) if number else range(count)


class Edits:
    """Edits that fail at an operation. ``count``: how many there are."""

    def __init__(self, folder):
        self.model = load_checkpoint(folder, dtype=torch.float32)
        self.usual = edit(folder, self.model)
        self.count = operations(lambda: edit(folder, self.model))

    def fails(self, at, error):
        with suppress(error), Failing(at, error):
            # Out of memory: a batch of two, one by one, or an error that nodes and command say in
            # one sentence.
            assert edit(None, self.model) == self.usual and error is not KeyboardInterrupt, at
        assert edit(None, self.model) == self.usual, at


class Loads:
    """Checkpoints whose loading fails at an operation. ``count``: how many there are."""

    def __init__(self, folder):
        self.folder, self.usual = folder, edit(folder)
        self.count = operations(lambda: load_checkpoint(folder, dtype=torch.float32))

    def fails(self, at, error):
        # safetensors calls torch.asarray, which turns an error within into a ValueError
        with suppress(error, InputError, ValueError), Failing(at, error):
            load_checkpoint(self.folder, dtype=torch.float32)
        assert edit(self.folder) == self.usual, at


def fail(folder, error, number=None):
    """At ``number`` operations of an edit, or all."""
    edits = Edits(folder)
    for at in places(edits.count, number):
        edits.fails(at, error)


ERRORS = (torch.OutOfMemoryError, KeyboardInterrupt)


@pytest.mark.parametrize("error", ERRORS)
def test_an_edit_that_fails_or_is_stopped(folder, error):
    fail(folder, error, FEW)


@pytest.mark.parametrize("error", ERRORS)
def test_a_checkpoint_whose_loading_fails_or_is_stopped(folder, error):
    loads = Loads(folder)
    for at in places(loads.count, FEW):
        loads.fails(at, error)


@pytest.mark.exhaustive
@pytest.mark.parametrize("error", ERRORS)
def test_at_every_operation(folder, error):
    fail(folder, error)


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


@pytest.mark.parametrize("method, few", [("sft", FEW), ("pararl", 2)])
def test_training_stopped_anywhere_ends_as_undisturbed(folder, tmp_path, method, few):
    training_stopped(folder, tmp_path, method, few)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["sft", "pararl"])
def test_training_stopped_at_every_operation(folder, tmp_path, method):
    training_stopped(folder, tmp_path, method)


def training_stopped(folder, tmp_path, method, number=None):
    trainings = Trainings(folder, tmp_path, method)
    for at in places(trainings.count, number):
        for error in ERRORS:
            trainings.fails(at, error)


class Trainings:
    """Runs that fail at an operation and are resumed. ``count``: how many there are."""

    def __init__(self, folder, work, method="sft"):
        self.folder, self.work, self.method = folder, work, method
        self.usual = self._ended(self._start("whole"))
        self.count = operations(self._start("counted").train)

    def _start(self, name):
        model = load_checkpoint(self.folder, dtype=torch.float32)
        torch.manual_seed(0)
        if self.method == "pararl":
            return new_run(model, self.work / name, PARARL)
        policy = LoRA(model.transformer, rank=2)
        targets = [replace(case, target=TARGET) for case in cases(model)]
        return SFTRun(model, targets, SFT, self.work / name, policy=policy)

    def _ended(self, run):
        run.train()
        return {name: tensor.clone() for name, tensor in run.policy.state_dict().items()}

    def fails(self, at, error):
        name = f"{at}-{error.__name__}"
        run = self._start(name)
        with Failing(at, error), suppress(error, InputError):
            run.train()
        after = self._start(name)
        after.resume()
        weights = self._ended(after)
        assert all(torch.equal(self.usual[key], value) for key, value in weights.items()), name

"""A disk that is full: each file is whole or as it was, nothing else is left, and one sentence
says so.

Real writes, stopped by the limit of a file's size, in processes of their own (see
tests/hostile/limits.py).
"""

import random
import resource
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from mmada_parallel.mmp_core import InputError
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.load import open_checkpoint
from mmada_parallel.mmp_core.checkpoint.tokens import save_tokens
from mmada_parallel.mmp_core.image.files import write_picture
from mmada_parallel.tests.hostile.limits import judged, one_sentence, warm
from mmada_parallel.tests.hostile.readers import RED, Place
from mmada_parallel.training.data.codes import CodeCache
from mmada_parallel.training.loop.folder import RunFolder
from mmada_parallel.training.loop.run_file import write_run_file
from mmada_parallel.training.weights.adapter_files import save_adapter
from mmada_parallel.training.weights.checkpoint_files import save_whole
from mmada_parallel.training.weights.policies import LoRA

SMALL, SOME = 4096, 100


def tokens(place, folder):
    save_tokens(folder / "a.safetensors", place.state, place.model)


def picture(place, folder):
    write_picture(folder / "a.png", RED, notes={"instruction": "make it red"})


def run_state(place, folder):
    RunFolder(folder).write({"step": 3, "weights": torch.ones(500)})


def run_log(place, folder):
    RunFolder(folder).log({"step": 1, "loss": 0.5})


def run_file(place, folder):
    write_run_file(folder / "run.toml", "sft", {"data": "a", "steps": 3})


def codes(place, folder):
    cache = CodeCache(folder / "codes.safetensors", "f")
    cache.codes["a"] = torch.ones(1, 4, 4).long()
    cache.write()
    if cache.note:  # a cache that cannot be written stops nothing
        raise InputError(cache.note)


def whole(place, folder):
    weights, source = place.model.transformer.state_dict(), open_checkpoint(place.folder / "A")
    with told_by_the_trainers():
        save_whole(folder / "w.safetensors", weights, source, {})


@contextmanager
def told_by_the_trainers():
    """Who say how to go on."""
    try:
        yield
    except OSError as error:
        raise InputError(f"It cannot be written ({error.strerror}).") from None


def packed(place, folder):
    convert(place.folder / "A", folder / "p.safetensors", quantize="fp8")


WRITERS = {
    "tokens": tokens,
    "picture": picture,
    "run's state": run_state,
    "run's log": run_log,
    "run file": run_file,
    "codes": codes,
    "whole checkpoint": whole,
    "packed file": packed,
}
GROW = {"run's log", "packed file"}
"""What may be there in part: the log is read up to a cut line, a conversion is gone on from."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("full"))
    adapter = LoRA(place.model.transformer, rank=2)
    WRITERS["adapter"] = lambda place, folder: save(adapter, folder)
    warm()
    return place


def save(adapter, folder):
    with told_by_the_trainers():
        save_adapter(folder / "l.safetensors", adapter)


@contextmanager
def full(most):
    """Inside, no file can be larger than ``most`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def contents(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    files = [file for file in files if file.parent.name != "tensorboard"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def sizes(place, write, folder):
    folder.mkdir()
    verdict, said = judged(lambda: write(place, folder))
    assert verdict == "ok", said
    made = {name: len(content) for name, content in contents(folder).items()}
    shutil.rmtree(folder)
    return made


def fails_whole(place, name, offsets, tmp_path):
    """Writes to an empty folder and to one with an older file, at each of ``offsets``."""
    older = sizes(place, WRITERS[name], tmp_path / "probe")
    for targets in ((), older):

        def everywhere(targets=targets):
            for most in offsets:
                fails_at(place, name, most, tmp_path, targets)

        verdict, said = judged(everywhere, seconds=10 + len(offsets))
        assert verdict == "ok", said


def fails_at(place, name, most, tmp_path, targets):
    folder = tmp_path / "out"
    for target in targets:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).write_bytes(b"{}")
    folder.mkdir(exist_ok=True)
    old = contents(folder)
    with full(most), pytest.raises(InputError) as error:
        WRITERS[name](place, folder)
    assert one_sentence(error.value), error.value
    left = contents(folder)
    if name in GROW:
        left = {k: v for k, v in left.items() if k in old and name == "packed file"}
        old = old if name == "packed file" else {}
    assert left == old, most
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [*WRITERS, "adapter"])
def test_a_file_is_whole_or_as_it_was(place, name, tmp_path):
    size = max(sizes(place, WRITERS[name], tmp_path / "size").values())
    fails_whole(place, name, [size // 2], tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*WRITERS, "adapter"])
def test_at_every_byte_of_a_small_file_and_some_of_a_large_one(place, name, tmp_path):
    size = max(sizes(place, WRITERS[name], tmp_path / "size").values())
    rng = random.Random(name)
    offsets = range(size) if size < SMALL else sorted(rng.sample(range(size), SOME))
    fails_whole(place, name, offsets, tmp_path)

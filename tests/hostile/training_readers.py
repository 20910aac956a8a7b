"""Readers of what training keeps, with something that each reads and a way to spoil that."""

from dataclasses import replace

import torch
from mmada_parallel.tests.training.tiny_cases import QUICK, new_run

from . import mutations


def write_run(model, folder):
    """The state of a ParaRL run after a step."""
    run = new_run(model, folder, replace(QUICK, steps=1, ema=0.9))
    with run.policy:
        run.train()


def spoil_state(rng, folder):
    state = torch.load(folder / "run.pt", weights_only=True)
    for _ in range(rng.randint(1, 2)):
        state = changed(rng, state)
    torch.save(state, folder / "run.pt")


def changed(rng, value):
    """``value`` with one of its parts replaced or removed."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], changed(rng, value[place]), *value[place + 1 :]]
    return rng.choice([*mutations.STRANGE, *TENSORS])


TENSORS = [
    torch.zeros(()), torch.ones(3), torch.ones(2, 16), torch.ones(0), torch.ones(16, 2).to_sparse(),
    torch.ones(2, 16, dtype=torch.int64), torch.full((2, 16), float("nan")),
    torch.ones(2, 16, dtype=torch.complex64), torch.tensor(-1.0), torch.ones(2, 16).bool(),
    torch.ones(2, 16, device="meta"),
]  # fmt: skip
"""Two by sixteen is the shape of an adapter's A in the tiny models."""


def read_state(place, folder, rng):
    run = new_run(place.model, folder, replace(QUICK, steps=2, ema=0.9))
    assert run.resume()
    run.train()

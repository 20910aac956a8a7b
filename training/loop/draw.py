"""Which cases a step works on."""

from __future__ import annotations

import random
from array import array
from functools import lru_cache

from ..cases import Case, Cases, EndlessCases


def draw_cases(
    cases: Cases, step: int, count: int, *, seed: int, rank: int = 0, ranks: int = 1
) -> list[tuple[int, Case]]:
    """The share of process ``rank`` of the ``count`` cases of ``step``: every ``ranks``-th.

    Each with its number among all of them. Drawn without replacement, in another order each time
    round; endless cases come in their own order.
    """
    numbers = range(rank, count, ranks)
    if isinstance(cases, EndlessCases):
        return [(number, cases[step * count + number]) for number in numbers]
    drawn = []
    for number in numbers:
        epoch, place = divmod(step * count + number, len(cases))
        drawn.append((number, cases[_order(seed, epoch, len(cases))[place]]))
    return drawn


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> array[int]:
    """Kept from step to step, since shuffling a million cases takes seconds: of two sets of cases,
    as with rehearsal, and of two times round where a step reaches over an end."""
    shuffler = random.Random(f"{seed} order {epoch}")
    return array("q", shuffler.sample(range(count), count))

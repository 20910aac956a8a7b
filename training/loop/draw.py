"""Which cases a step works on."""

from __future__ import annotations

import random

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
    drawn, orders = [], {}
    for number in numbers:
        epoch, place = divmod(step * count + number, len(cases))
        if epoch not in orders:
            shuffler = random.Random(f"{seed} order {epoch}")
            orders[epoch] = shuffler.sample(range(len(cases)), len(cases))
        drawn.append((number, cases[orders[epoch][place]]))
    return drawn

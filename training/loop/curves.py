"""What losses on items that are not trained on say: which adapter is best, and what goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_RISE = 0.005
"""A guard loss that has risen by less is as good as before, however small it was: about one token
in 200 that was certain is no longer so."""


MANY = 10
"""From here on a rise is said as a multiple instead of a percentage."""


@dataclass(frozen=True)
class Measured:
    """The losses on held-out and guard items after ``step`` steps, ``None`` without such items."""

    step: int
    held_out: float | None
    guard: float | None


def forgotten(start: Measured, latest: Measured, rise: float) -> bool:
    """Whether the guard loss has risen by more than ``rise`` times the start's, and by more than
    :data:`LEAST_RISE`."""
    if start.guard is None or latest.guard is None:
        return False
    return latest.guard - start.guard > max(LEAST_RISE, rise * start.guard)


def best_of(measured: Sequence[Measured], rise: float) -> Measured | None:
    """The lowest held-out loss (without held-out items, the latest) among those that have not
    :func:`forgotten`. ``None`` where none is better than the start, the first of ``measured``."""
    start, *later = measured
    allowed = [m for m in later if not forgotten(start, m, rise)]
    if start.held_out is None:
        return allowed[-1] if allowed else None
    better = [m for m in allowed if m.held_out is not None and m.held_out < start.held_out]
    return min(better, key=lambda m: (m.held_out, m.step), default=None)


def since_best(measured: Sequence[Measured], rise: float) -> int:
    """How many measurements there have been since the best, or since the start without one."""
    best = best_of(measured, rise) or measured[0]
    return sum(m.step > best.step for m in measured)


def verdict(
    measured: Sequence[Measured], rise: float, name: str = "held-out loss", sign: int = 1
) -> str:
    """One line on each curve: what the latest losses are, and whether that is learning,
    remembering or forgetting. ``name``, ``sign``: what held-out losses are called, and what they
    are multiplied by for that."""
    start, latest = measured[0], measured[-1]
    lines = []
    if latest.held_out is not None and start.held_out is not None:
        losses = [m.held_out for m in measured if m.held_out is not None]
        lowest = losses.index(min(losses))
        if len(losses) == 1:
            word = "not begun"
        elif lowest == 0:
            word = "not learning, it was better at the start"
        elif lowest < len(losses) - 1:
            step = measured[lowest].step
            word = f"no longer learning, it was {sign * losses[lowest]:.4g} after step {step}"
        else:
            word = "learning"
        now, before = sign * latest.held_out, sign * start.held_out
        lines.append(f"{name} {now:.4g}, at the start {before:.4g}: {word}.")
    if latest.guard is not None and start.guard is not None:
        ratio = latest.guard / start.guard if start.guard else 1.0
        change = f"{ratio - 1:+.0%}" if ratio < MANY else f"{ratio:.0f} times"
        word = "keeping what it knew"
        if forgotten(start, latest, rise):
            word = "forgetting; a lower learning rate forgets less"
        now, before = f"{latest.guard:.4g}", f"{start.guard:.4g} ({change})"
        lines.append(f"guard loss {now}, at the start {before}: {word}.")
    return "\n".join(lines)

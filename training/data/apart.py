"""Which cases are held out, so that they are never trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ...mmp_core.errors import InputError
from ..cases import Case, Cases, EndlessCases
from .items import Counted, counted


def set_apart(
    cases: Cases, share: float, held_out: Sequence[Case], callback: Counted | None = None
) -> tuple[Cases, Sequence[Case]]:
    """The cases to train on, and those to hold out: ``held_out`` and ``share`` of the others.

    Cases of the same pictures stay together, so that nothing that is held out is trained on in
    another form; which ones are drawn depends on what they are alone, not on their order.
    ``callback`` counts cases now and then.
    Raises ``InputError`` where nothing is left to train on.
    """
    if isinstance(cases, EndlessCases):
        if share:
            raise InputError("A share of endless cases cannot be held out: give items to hold out.")
        return cases, held_out
    apart = {origin_of(case) for case in held_out}
    origin = [origin_of(case) for case in counted(cases, callback)]
    origins = sorted(set(origin) - apart)
    count = min(len(origins) - 1, max(1, round(share * len(origins)))) if share else 0
    drawn = set(origins[: max(0, count)])
    left_out = apart | drawn
    kept = [case for case, its in zip(cases, origin, strict=True) if its not in left_out]
    if not kept or (share and not drawn):
        raise InputError(
            "Nothing is left to train on beside what is held out: give more items, or hold out "
            "fewer."
        )
    pairs = zip(reversed(cases), reversed(origin), strict=True)
    first = {its: case for case, its in pairs if its in drawn}
    return kept, [*held_out, *first.values()]


def halves(guard: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """The guard items to measure, and those to rehearse, which have other pictures. Raises
    ``InputError`` where there are too few."""
    origins = sorted({origin_of(case) for case in guard})
    if len(origins) < 2:
        raise InputError(
            "rehearsal needs guard items of two pictures at least, of which one half is trained "
            "on and the other measured: give guard items, or 0."
        )
    measured = set(origins[::2])
    parts: tuple[list[Case], list[Case]] = [], []
    for case in guard:
        parts[origin_of(case) not in measured].append(case)
    return parts


def origin_of(case: Case) -> str:
    """Equal for cases that were made of the same pictures, in hex."""
    if case.origin:
        return case.origin
    digest = hashlib.sha256()
    tokens = [case.prompt.image, case.target and case.target.image]
    if case.target is None or not case.target.image.numel():
        digest.update(case.instruction.encode())
    for each in tokens:
        digest.update(b"-" if each is None else each.cpu().numpy().tobytes())
    return digest.hexdigest()

"""Spoilt files, values and names against every reader: nothing raw, hung or dead.

``python -m pytest tests/hostile -m exhaustive`` runs as many cases as docs/results.md reports.
"""

import os
import tempfile
from pathlib import Path

import pytest

from .limits import counts, judged
from .readers import READERS

IN_CI, EXHAUSTIVE = 8, 600


def faults(place, name, seeds, counted=None):
    """What the cases ``seeds`` of a reader ended in that is neither a result nor a sentence."""
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as work:
            verdict, message = judged(READERS[name].case(place, seed, work))
        if counted is not None:
            counted.append(verdict)
        if verdict not in ("ok", "input"):
            found.append(f"{name}, case {seed}: {verdict}: {message}")
    return found


@pytest.mark.parametrize("name", READERS)
def test_a_few_hundred_cases(place, name):
    assert faults(place, name, range(IN_CI)) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_cases(place, name):
    """Figures go to the file that HOSTILE_FIGURES names."""
    counted = []
    found = faults(place, name, range(IN_CI, IN_CI + EXHAUSTIVE), counted)
    if file := os.environ.get("HOSTILE_FIGURES"):
        with Path(file).open("a") as figures:
            numbers = " | ".join(map(str, counts(counted).values()))
            figures.write(f"| {name} | {len(counted)} | {numbers} |\n")
    assert found == []

"""Memory of the card that runs out at any allocation of an edit or of training (full_card.py): the
result of other runs, or one sentence and ComfyUI's own error; nothing stays on the card, and the
next run, which goes on with the training, gives what undisturbed ones give."""

import json

import pytest
from mmada_parallel.tests.comfyui.on_card import run_on_card

FEW, ALL = 1, 0


@pytest.fixture(params=[FEW, pytest.param(ALL, marks=pytest.mark.exhaustive)], ids=["few", "all"])
def lines(request, tmp_path):
    """One for each allocation that failed."""
    folder, file = tmp_path / "folder", tmp_path / "lines"
    run_on_card("full_card", "current", folder, "edit,training", file, request.param, timeout=None)
    return list(map(json.loads, file.read_text().splitlines()))


def test_every_allocation_may_fail(lines):
    assert {line["kind"] for line in lines} == {"edit", "training"}
    bad = [line for line in lines if line["verdict"] not in ("as usual", "sentence")]
    assert not bad + [line for line in lines if line["after"] != "equal"]

"""A workflow that any landed version saved, with whichever values, still fits the nodes: widgets
keep their place, kind, choices and range, inputs their names, outputs theirs."""

import json

import pytest
from mmada_parallel.tests.nodes.old_widgets import FILE, declared

OLD = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def now(classes):
    return {name: declared(node.GET_NODE_INFO_V1()) for name, node in classes.items()}


@pytest.mark.parametrize("version", OLD)
def test_what_a_version_saved_fits(version, now):
    for node, then in OLD[version].items():
        assert node in now, f"{node} is gone"
        today = now[node]
        assert today["outputs"][: len(then["outputs"])] == then["outputs"], node
        assert then["slots"].items() <= today["slots"].items(), node
        assert len(today["widgets"]) >= len(then["widgets"]), node
        for old, new in zip(then["widgets"], today["widgets"], strict=False):
            assert new[:2] == old[:2], (node, old, new)
            fits(node, old, new)


def fits(node, old, new):
    _, _, choices, low, high = old
    assert set(choices or ()) <= set(new[2] or ()), (node, old, new)
    assert low is None or (new[3] <= low and new[4] >= high), (node, old, new)

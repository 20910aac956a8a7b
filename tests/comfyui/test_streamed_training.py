"""Gradients do not depend on where ComfyUI keeps the weights: on a card in Python (card.py) that
holds all, some or none of them, plain and quantised. That proves nothing about DynamicVRAM."""

import json

import pytest
from mmada_parallel.tests.comfyui.on_card import run_on_card


@pytest.fixture(
    scope="module", params=["current", pytest.param("oldest", marks=pytest.mark.exhaustive)]
)
def observed(request, tmp_path_factory):
    """What each checkpoint did with room for "all", "some" and "none" of its weights."""
    folder = tmp_path_factory.mktemp(f"training-{request.param}")
    printed = run_on_card("streamed_training", request.param, folder)
    return json.loads(printed.strip().rpartition("\n")[2])


def test_gradients_are_the_same_wherever_the_weights_are(observed):
    assert len(observed) >= 4
    for runs in observed.values():
        assert any(runs["all"]["gradients"]) and not runs["all"]["streamed"]
        for name in ("some", "none"):
            assert runs[name]["streamed"]
            assert runs[name]["loss"] == runs["all"]["loss"]
            assert runs[name]["gradients"] == runs["all"]["gradients"]
        assert "Linear" in runs["none"]["streamed"]


def test_what_is_streamed_is_told(observed):
    for runs in observed.values():
        assert "streamed" in runs["some"]["told"] and "streamed" not in runs["all"]["told"]


def test_training_leaves_nothing_on_the_card(observed):
    for runs in observed.values():
        assert [run["after"] for run in runs.values()] == [0, 0, 0]

"""Nodes can be interrupted between any two pictures or samples of a batch."""

import sys

import pytest
import torch
from mmada_parallel.mmp_core import TokenState, Trajectory
from mmada_parallel.mmp_core.state import Step

FEW, MANY = 2, 6


@pytest.fixture
def checks(monkeypatch):
    """``checks(call)``: how often it asks whether it was interrupted, ComfyUI's loader aside."""
    import comfy.model_management as management

    def count(call):
        asked = []
        with monkeypatch.context() as patch:
            ask = "throw_exception_if_processing_interrupted"
            patch.setattr(management, ask, lambda: asked.append(sys._getframe(1).f_code.co_name))
            call()
        return asked.count("stop_if_interrupted")

    return count


@pytest.fixture
def batch(nodes, model, encoded, tmp_path, monkeypatch):
    """Inputs of a node for so many pictures and samples, by the names of its inputs."""
    import folder_paths

    monkeypatch.setattr(nodes.pictures.ui.ImageSaveHelper, "save_images", lambda *a, **k: [])
    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(MANY, 64, 64, 3, generator=generator)
    masks = torch.zeros(MANY, 64, 64)
    masks[:, :40] = 1

    def inputs(count):
        prompt = encoded(images[:count], text_length=6)
        grid = prompt.initial.grid
        tokens = TokenState(torch.full((count, 6), 5), torch.zeros(count, *grid).long())
        steps = (Step.before(prompt.initial), Step.before(tokens))
        return {
            "model": model,
            "prompt": prompt,
            "tokens": tokens,
            "trajectory": Trajectory(steps, prompt.initial, tokens, 2),
            "image": images[:count],
            "mask": masks[:count],
        }

    yield inputs
    folder_paths.set_input_directory(before)


ENCODED = {
    "width": 0,
    "height": 0,
    "text_length": 0,
    "instruction": "remove the red star",
}
PUT_BACK = {"mode": "all", "fill": "auto", "feather": 8, "grow": 0, "threshold": 0.1}
CASES = [
    ("CollectDataset", ("image", "target"), {"dataset": "d", "instruction": "make it red"}, 3),
    ("EncodeInstruction", ("model", "image", "mask"), ENCODED, 6),
    ("SetTokens", ("model", "prompt", "image"), {"text": "", "rest": "auto"}, 2),
    ("Remask", ("model", "tokens", "mask"), {"text": "reopen selected", "words": "1"}, 3),
    ("DecodeText", ("model", "tokens"), {}, 1),
    ("DecodeImage", ("model", "tokens"), {"fill": "grey"}, 1),
    ("Vary", ("model", "prompt", "tokens"), {"picture": 0.5, "text": 0.0}, 1),
    ("PutBack", ("model", "prompt", "original", "result", "mask"), PUT_BACK, 4),
    ("ScoreAlignment", ("model", "tokens"), {"clip": "demo"}, 1),
    ("ScoreAlignment", ("model", "trajectory"), {"clip": "demo"}, 2),
]
MORE = {
    "SetTokens": {"instruction": "auto"},
    "Remask": {"picture": "reopen masked", "pattern": "a", "coverage": 0.0},
}


@pytest.mark.parametrize(
    "name, linked, widgets, each", CASES, ids=[f"{name}-{links[-1]}" for name, links, *_ in CASES]
)
def test_a_node_asks_between_any_two_of_a_batch(
    run_node, checks, batch, name, linked, widgets, each
):
    """``each``: how many loops it has over the batch."""

    def call(count):
        given = batch(count)
        given |= dict.fromkeys(("original", "result", "target"), given["image"])
        links = {link: given[link] for link in linked}
        return lambda: run_node(name, **links, **widgets, **MORE.get(name, {}))

    call(FEW)()  # loads what it needs
    few, many = checks(call(FEW)), checks(call(MANY))
    assert many - few >= each * (MANY - FEW)


def test_the_texts_that_a_viewer_gets_are_made_one_at_a_time(nodes, batch, checks):
    view = nodes.live.LiveView(None, None, 0)
    count = {}
    for samples in (FEW, MANY):
        given = batch(samples)
        view.model = given["model"].model
        count[samples] = checks(lambda run=given["trajectory"]: view.recorded(run))
    assert count[MANY] - count[FEW] >= MANY - FEW

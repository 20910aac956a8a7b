"""Nodes can be interrupted between any two pictures or samples of a batch."""

import json
import sys
from functools import partial

import pytest
import torch
from mmada_parallel.mmp_core import TokenState, Trajectory
from mmada_parallel.mmp_core.state import Step
from mmada_parallel.training.weights.adapter_files import adapter_tensors
from mmada_parallel.training.weights.policies import LoRA

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


def test_a_large_picture_is_read_and_made_in_strips(nodes, checks, monkeypatch):
    pictures, pixels = nodes.pictures, torch.rand(2, 64, 64, 3)
    monkeypatch.setattr(pictures, "_STRIP", 64 * 3 * 4)
    assert checks(lambda: pictures.to_picture(pixels[0])) == 16
    made = pictures.to_pictures(pixels)
    assert checks(lambda: pictures.to_pixels(made)) >= 2 * 16
    assert torch.equal(pictures.to_pixels(made), (pixels * 255).round() / 255)
    assert checks(lambda: nodes.gate._check_tensor("image", pixels, (4,), "pictures")) == 2 * 16


def test_loading_asks_before_each_tensor(host, checks):
    loaded = host.load("untrained", "auto", "auto")
    count = sum(len(p.model.state_dict()) for p in (loaded.patcher, loaded.image_patcher))
    assert checks(lambda: host.load("untrained", "auto", "auto")) >= count


def test_an_adapter_asks_for_each_layer(run_node, model, checks):
    with LoRA(model.model.transformer, rank=2) as policy:
        state = {name: value.detach().clone() for name, value in adapter_tensors(policy).items()}
    given = {"model": model, "lora": "none", "strength": 1.0, "lora_model": state}
    layers = sum(name.endswith("lora_A.weight") for name in state)
    assert layers and checks(lambda: run_node("ApplyLoRA", **given)) >= 3 * layers


def test_a_fingerprint_is_left_and_the_interruption_stays(nodes, tmp_path, batch):
    import comfy.model_management as management

    (tmp_path / "m.jsonl").write_text(json.dumps({"instruction": "make it red"}))
    fingerprint = partial(nodes.dataset.LoadEditDataset.fingerprint_inputs, dataset="m.jsonl")
    whole = fingerprint()
    management.interrupt_current_processing()
    try:
        assert whole and fingerprint() == []
        assert management.processing_interrupted()
    finally:
        management.interrupt_current_processing(False)

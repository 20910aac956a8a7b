"""Forwards as CUDA graphs: when, how often captured, and that no result is overwritten.

Without a GPU the logic is tested with a stand-in for ``graphs.capture``, which like a graph
recomputes from the tensors it was captured with, into the tensor it returned first.
"""

from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core import SamplerSettings, denoise
from mmada_parallel.mmp_core.model import graphs
from mmada_parallel.mmp_core.model.formats import FORMATS
from mmada_parallel.mmp_core.model.graphs import GraphedForward
from mmada_parallel.mmp_core.model.quantised import WeightOnlyLinear, replace_linears
from mmada_parallel.tests.mmp_core import tiny

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


class Captures:
    def __init__(self):
        self.made = self.replayed = 0

    def __call__(self, run):
        self.made += 1
        output = run()

        def replay():
            self.replayed += 1
            return output.copy_(run())

        return replay


def ids(seed, length):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 12, (1, length), generator=generator)


@torch.no_grad()
def test_one_graph_per_shape_and_no_result_is_overwritten():
    transformer, captures = tiny.transformer("A"), Captures()
    forward = GraphedForward(transformer, captures)
    calls = [ids(seed, length) for seed, length in enumerate((5, 7, 5, 7, 5, 5, 7, 3))]
    found = [forward(call) for call in calls]
    for call, hidden in zip(calls, found, strict=True):
        assert torch.equal(hidden, transformer(call))
    assert captures.made == 2
    assert captures.replayed == 5


@torch.no_grad()
def test_busy_shapes_and_failed_captures_run_without(monkeypatch):
    transformer = tiny.transformer("A")

    def fails(run):
        raise torch.OutOfMemoryError("no room for a graph")

    forward = GraphedForward(transformer, fails)
    for seed in range(4):
        assert torch.equal(forward(ids(seed, 5)), transformer(ids(seed, 5)))
    captures = Captures()
    forward = GraphedForward(transformer, captures)
    monkeypatch.setattr(graphs, "BUSY", transformer.config.linear_flop(6))
    for seed, length in enumerate((5, 5, 6, 6, 6)):
        assert torch.equal(forward(ids(seed, length)), transformer(ids(seed, length)))
    assert captures.made == 1


def test_the_flop_of_a_block():
    transformer = tiny.transformer("A")
    weights = [w for w in transformer.layers["blocks"][0].parameters() if w.ndim == 2]
    assert transformer.config.linear_flop(3) == 2 * 3 * sum(w.numel() for w in weights)


@pytest.mark.parametrize("variant", "AM")
def test_a_run_is_the_same_with_graphs(monkeypatch, variant):
    model, captures = tiny.TinyModel(variant), Captures()
    start = tiny.prompt(model.layout, text=6, grid=(3, 3))
    own = SamplerSettings(text_steps=6, image_steps=6, text_guidance=1.0)
    expected = denoise(model, start, own)
    monkeypatch.setattr(graphs, "is_static", lambda transformer: True)
    monkeypatch.setattr(graphs, "capture", captures)
    found = denoise(model, start, own)
    for step, other in zip(found, expected, strict=True):
        assert torch.equal(step.after.text, other.after.text)
        assert torch.equal(step.after.image, other.after.image)
    assert captures.made and captures.replayed > captures.made


def hooked(transformer):
    transformer.layers["blocks"][1].q_proj.register_forward_hook(lambda *call: None)


def foreign_layer(transformer):
    class Streamed(torch.nn.Linear):
        pass

    transformer.layers["blocks"][0].q_proj = Streamed(16, 16)


def foreign_attention(transformer):
    transformer.layers["blocks"][0].attention = lambda q, k, v: v.transpose(1, 2).flatten(2)


def replaced_forward(transformer):
    layer = transformer.layers["ff_out"]
    layer.forward = layer.forward


@pytest.mark.parametrize("change", [hooked, foreign_layer, foreign_attention, replaced_forward])
def test_what_may_change_between_calls_is_not_captured(monkeypatch, change):
    transformer = tiny.transformer("A")
    assert not graphs.is_static(transformer)  # it is on the CPU
    monkeypatch.setattr(graphs, "is_resident", lambda transformer: True)
    assert graphs.is_static(transformer)
    change(transformer)
    assert not graphs.is_static(transformer)
    assert graphs.forward_of(transformer) is transformer


@pytest.mark.parametrize("hip, captured", [(None, True), ("6.4", False)])
def test_amds_gpus_are_left_without_graphs(monkeypatch, hip, captured):
    """Which torch calls cuda, too."""
    weight = SimpleNamespace(device=torch.device("cuda:0"))
    transformer = SimpleNamespace(
        layers={"wte": SimpleNamespace(weight=weight)}, state_dict=lambda: {"wte.weight": weight}
    )
    monkeypatch.setattr(torch.version, "hip", hip)
    assert graphs.is_resident(transformer) is captured


def test_quantised_layers_are_static(monkeypatch):
    transformer = tiny.transformer("A")
    monkeypatch.setattr(graphs, "is_resident", lambda transformer: True)
    name = "model.transformer.blocks.0.q_proj"
    replace_linears(
        transformer, {name: FORMATS["fp8"]}, lambda *sizes, device: WeightOnlyLinear(*sizes)
    )
    assert graphs.is_static(transformer)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_on_a_gpu_is_the_same_with_graphs(monkeypatch, dtype):
    model = tiny.TinyModel("A", dtype)
    model.device = torch.device("cuda")
    model.transformer = tiny.transformer("A", dtype).to(
        model.device
    )  # without the hook that counts
    start = tiny.prompt(model.layout, text=6, grid=(3, 3))
    own = SamplerSettings(text_steps=6, image_steps=6, text_guidance=1.0)
    captured = []
    capture = graphs.capture
    monkeypatch.setattr(graphs, "capture", lambda run: captured.append(run) or capture(run))
    found = denoise(model, start, own)
    assert captured
    monkeypatch.setattr(graphs, "is_static", lambda transformer: False)
    expected = denoise(model, start, own)
    for step, other in zip(found, expected, strict=True):
        assert torch.equal(step.after.text, other.after.text)
        assert torch.equal(step.after.image, other.after.image)


def test_gradients_need_the_forward_itself():
    transformer, captures = tiny.transformer("A").requires_grad_(True), Captures()
    forward = GraphedForward(transformer, captures)
    assert all(forward(ids(seed, 5)).requires_grad for seed in range(3))
    assert not captures.made

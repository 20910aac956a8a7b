"""The growth benchmark on small sizes: memory grows with the tokens, not with their square."""

import json

import pytest
import torch
from mmada_parallel.benchmarks.growth import Point, plot, run
from mmada_parallel.benchmarks.shapes import TINY, RandomModel

AXES = {
    "side": [Point(side=128, text=8), Point(side=512, text=8)],
    "text": [Point(side=64, text=8), Point(side=64, text=32)],
    "batch": [Point(side=64, text=8), Point(side=64, text=8, batch=4)],
}


def test_memory_grows_with_the_tokens_and_keeps_to_the_estimate(tmp_path):
    sizes = {**TINY, "embedding_size": 134656, "n_layers": 1}
    model = RandomModel.of(sizes, torch.device("cpu"), torch.float32)
    results = run(model, AXES, tmp_path / "growth.json")
    assert results == run(model, AXES, tmp_path / "growth.json")  # nothing is counted twice
    assert results == json.loads((tmp_path / "growth.json").read_text())
    for point in results["points"].values():
        assert point["counted_gb"] <= 1.1 * point["estimated_gb"] <= 2.2 * point["counted_gb"]
    small, large = (results["points"][f"exact, side {side}"] for side in (128, 512))
    image_tokens = (512 / 128) ** 2
    assert large["counted_gb"] / small["counted_gb"] < 1.25 * image_tokens
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")

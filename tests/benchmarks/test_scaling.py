"""The scaling benchmark on a model of no size."""

import json

import pytest
import torch
from mmada_parallel.benchmarks import scaling

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def test_points_and_plot(tmp_path):
    found = scaling.run(scaling.TINY, torch.device("cpu"), tmp_path, 60)
    assert found == json.loads((tmp_path / "scaling.json").read_text())
    assert found["failed"] == found["skipped"] == []
    one, two = found["batch"]
    assert two["tflop"] == pytest.approx(2 * one["tflop"])
    assert two["forwards"] == one["forwards"] == 5  # 4 steps, one of them guided
    assert [point["forwards"] for point in found["steps"]] == [5, 10]
    smaller, larger = found["tokens"]
    assert larger["tokens"] > smaller["tokens"] and larger["tflop"] > smaller["tflop"]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")

"""The GPU benchmark on a model of no size: all parts run; what time or memory denies is told."""

import json
import math
import time

import pytest
import torch
from mmada_parallel.benchmarks import gpu
from mmada_parallel.benchmarks.measure import Inside, Report
from mmada_parallel.benchmarks.shapes import TINY, RandomModel
from mmada_parallel.mmp_core.model.formats import FORMATS
from mmada_parallel.mmp_core.model.quantised import WeightOnlyLinear

CPU = torch.device("cpu")


def test_all_parts_run(tmp_path):
    report = Report(tmp_path / "gpu.json", math.inf)
    gpu.measure_all(report, gpu.SMALL, CPU, None)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == found["skipped"] == []
    for kind in ("bf16", *FORMATS):
        for setting in (gpu.README, "defaults"):
            for level in gpu.LEVELS:
                assert found[f"{kind}, {setting}, {level}"]["seconds"] > 0
    assert found["fp8, weights"]["gb"] == pytest.approx(found["int8, weights"]["gb"], rel=0.01)
    for by in found["outside"].values():
        assert 0 < by["kernels"] < 1 and 0 < by["torch"] < 1
    assert all(part["agree"] == 1 for part in found["decisions"].values())


def test_without_time_nothing_runs_and_all_is_named(tmp_path):
    report = Report(tmp_path / "gpu.json", time.monotonic())
    gpu.measure_all(report, gpu.SMALL, CPU, None)
    names = " ".join(report.results["skipped"])
    assert "forward" in names and all(level in names for level in gpu.LEVELS)
    assert not any("seconds" in part for part in report.results.values() if isinstance(part, dict))


def test_a_part_that_fails_is_named_and_the_others_stay(tmp_path, capsys):
    file = tmp_path / "out.json"
    report = Report(file, math.inf)

    def fails():
        raise torch.OutOfMemoryError("no room\nat all")

    assert report.part("first", 0, lambda: 1) == 1
    assert report.part("second", 0, fails) is None
    assert report.part("third", 0, lambda: 3) == 3
    found = json.loads(file.read_text())
    assert found["first"] == 1 and found["third"] == 3
    assert found["failed"] == ["second: OutOfMemoryError: no room"]


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_are_quantised_as_the_converter_does(kind):
    model = RandomModel.of(TINY, CPU, torch.bfloat16)
    blocks = model.transformer.layers["blocks"]
    before = blocks[1].q_proj.weight.float()
    gpu.quantise_blocks(model, FORMATS[kind])
    layers = [m for m in model.transformer.modules() if isinstance(m, WeightOnlyLinear)]
    assert len(layers) == 7 * len(blocks)
    after = blocks[1].q_proj.dequantised(torch.float32)
    error = 0.15 if kind == "nvfp4" else 0.07
    assert (after - before).abs().max() < error * before.abs().max()


def test_the_reference_is_compared_at_its_own_setting():
    found = {f"bf16, {gpu.README}, reference": {"seconds": 12.0}, "forward": {"seconds": 1.0}}
    found |= {f"bf16, {gpu.README}, exact": {"seconds": 6.0}, "bf16, defaults": {"seconds": 1.0}}
    assert sorted(gpu.ratios(found).values()) == [1.0, 2.0]
    assert gpu.ratios({f"bf16, {gpu.README}, exact": {"seconds": 6.0}}) == {}


def test_time_inside_and_outside(monkeypatch):
    clock = iter((0.0, 1.0, 3.0, 4.0, 9.0, 10.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    module = torch.nn.Identity()
    with Inside(module, CPU) as inside:
        module(1)
        module(2)
    assert inside.outside_share() == pytest.approx(1 - (2 + 5) / 10)
    assert not module._forward_hooks and not module._forward_pre_hooks

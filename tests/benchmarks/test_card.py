"""The script for a card, on a model of no size and a CPU: every part of each piece runs."""

import math
from argparse import Namespace

import pytest
import torch
from mmada_parallel.benchmarks import card
from mmada_parallel.benchmarks.measure import Report
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.load import open_checkpoint, stored_dtype
from mmada_parallel.tests.hosts import find_host

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    made = card.write_random(folder / "bf16", card.TINY, CPU)
    convert(made, folder / "int8.safetensors", quantize="int8")
    return {"bf16": made, "int8": folder / "int8.safetensors"}


def test_the_random_checkpoint_is_one(checkpoints):
    for path in checkpoints.values():
        assert load_checkpoint(path, dtype=torch.bfloat16).transformer.dtype == torch.bfloat16
        assert stored_dtype(open_checkpoint(path)) == torch.bfloat16


@pytest.mark.exhaustive
def test_every_training_step_runs(checkpoints):
    report = Report(None, math.inf)
    card.measure_training(report, checkpoints, CPU)
    assert report.results["failed"] == report.results["skipped"] == []
    steps = [report.results[f"training, {kind}"][of] for kind in checkpoints for of in STEPS]
    assert all(step["seconds"] > 0 for step in steps)


STEPS = ("sft", "pararl")


@pytest.mark.exhaustive
def test_every_edit_through_comfyui_runs(checkpoints):
    host, report = find_host("current"), Report(None, math.inf)
    if problem := host.problem():
        pytest.skip(problem)
    card.measure_comfyui(report, checkpoints, Namespace(comfyui=host.path, tiny=True, budget=1))
    assert report.results["failed"] == report.results["skipped"] == []
    assert len(report.results) == 2 + 2 * 3

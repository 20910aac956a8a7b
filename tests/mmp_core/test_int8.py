"""Layers that multiply as int8: exact sums, independent rows, one clear refusal."""

import pytest
import torch
from mmada_parallel.cli import main
from mmada_parallel.mmp_core import CheckpointError, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.load import DEMO
from mmada_parallel.mmp_core.memory import dequantised_bytes
from mmada_parallel.mmp_core.model import int8
from mmada_parallel.mmp_core.model.formats import FORMATS
from mmada_parallel.mmp_core.model.quantised import WeightOnlyLinear
from mmada_parallel.tests.live_bytes import most_bytes

IDS = torch.arange(60)[None]


@pytest.fixture(scope="module")
def demo_int8(tmp_path_factory):
    file = tmp_path_factory.mktemp("int8") / "demo.safetensors"
    convert(DEMO, file, quantize="int8")
    return file


def layer(outputs=96, inputs=64):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    made = WeightOnlyLinear.of(weight, FORMATS["int8"])
    made.as_int8 = True
    return made


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def by_hand(x, made):
    """The definition, in float64."""
    scale = x.double().abs().amax(dim=-1, keepdim=True) / 127
    whole = (x.double() / scale).round()
    return (whole @ made.weight.double().t()) * scale * made.weight_scale.double().t()


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_it_is_the_product_of_rounded_rows(dtype, error):
    made, x = layer(), inputs(2, 30, 64).to(dtype)
    found = made(x)
    assert found.dtype == dtype and found.shape == (2, 30, 96)
    expected = by_hand(x, made)
    assert (found.double() - expected).abs().max() <= error * expected.abs().max()
    exact = made.dequantised(torch.float32)
    assert 0 < (expected - x.double() @ exact.double().t()).norm() / expected.norm() < 0.01


def test_a_row_does_not_depend_on_the_others(monkeypatch):
    made, x = layer(), inputs(50, 64)
    whole = made(x)
    assert torch.equal(torch.cat([made(x[:7]), made(x[7:])]), whole)
    monkeypatch.setattr(int8, "PART_BYTES", 8 * 96 * 20)  # parts of 20, 20 and the last 20 rows
    assert torch.equal(made(x), whole)


def test_what_is_not_finite_stays_so_and_nothing_is_nothing():
    made, x = layer(), inputs(20, 64)
    x[3, 5], x[4, 5], x[5] = torch.nan, torch.inf, 0
    found = made(x)
    finite = found.isfinite().all(dim=1)
    assert finite.nonzero().flatten().tolist() == [i for i in range(20) if i not in (3, 4)]
    assert not found[5].any()
    assert made(x[:0]).shape == (0, 96)


def test_gradients_are_those_of_the_dequantised_weight():
    made, x = layer(), inputs(20, 64).requires_grad_()
    weights = inputs(20, 96)
    (made(x) * weights).sum().backward()
    assert torch.allclose(x.grad, weights @ made.dequantised(torch.float32))


def test_the_estimate_covers_what_a_product_holds():
    made, x = layer(4096, 1024), inputs(3000, 1024)
    found = most_bytes(lambda: made(x))
    beside = found - 3000 * 4096 * 4 - 3000 * 1024 * (4 + 1)  # the result, rows scaled and rounded
    assert beside <= dequantised_bytes(torch.nn.Sequential(made), 4)


def test_a_checkpoint_is_loaded_so_and_computes_nearly_the_same(demo_int8):
    plain, whole = (load_checkpoint(demo_int8, dtype=dtype) for dtype in (None, torch.int8))
    assert whole.transformer.dtype == plain.transformer.dtype
    theirs, ours = (m.transformer(IDS).float() for m in (plain, whole))
    assert 0 < (ours - theirs).norm() / theirs.norm() < 0.05


def test_weights_that_are_not_int8_are_refused():
    with pytest.raises(CheckpointError, match="holds no int8 weights.*convert it to int8"):
        load_checkpoint(DEMO, dtype=torch.int8)


def test_the_command_takes_it(demo_int8, tmp_path, capsys):
    options = ["--text-steps", "2", "--image-steps", "1", "--out", str(tmp_path / "out.png")]
    draw = ["generate", "draw a blue star on white", *options, "--dtype", "int8"]
    assert main([*draw, "--model", str(demo_int8)]) == 0
    assert (tmp_path / "out.png").is_file()
    assert main([*draw, "--model", "demo"]) == 2
    assert "no int8 weights" in capsys.readouterr().err

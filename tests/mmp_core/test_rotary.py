"""Rotation without gradients gives the bits of the one that gradients pass through."""

import pytest
import torch
from mmada_parallel.mmp_core.model.rotary import rotary_table, rotate
from mmada_parallel.tests.mmp_core import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("full_precision", [True, False])
@pytest.mark.parametrize("own_positions", [False, True])
def test_without_gradients_it_has_the_same_bits(dtype, full_precision, own_positions):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 9, 4 * 6, generator=generator).to(dtype)
    x[0, 0, :4] = torch.tensor([0.0, -0.0, torch.inf, 3e4])
    x = x.unflatten(-1, (4, 6)).transpose(1, 2)
    table = rotary_table(9, 6, 1e4, torch.device("cpu"))
    table = table if full_precision else table.to(dtype)
    if own_positions:
        table = table[:, torch.randint(0, 9, (2, 9), generator=generator)].unsqueeze(2)
    expected = rotate(x, table)
    with torch.no_grad():
        found = rotate(x, table)
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(found.signbit(), expected.signbit())


@pytest.mark.parametrize("variant", "AM")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_has_the_same_bits_with_and_without_gradients(variant, dtype):
    transformer, ids = tiny.transformer(variant, dtype), torch.arange(14).view(2, 7)
    expected = transformer(ids)
    with torch.no_grad():
        assert torch.equal(transformer(ids), expected)

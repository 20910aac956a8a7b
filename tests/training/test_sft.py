import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmada_parallel.training.sft.loss import (
    Condition,
    draw_conditions,
    draw_mask,
    group,
    sft_losses,
)


class Uniform(torch.nn.Module):
    """Predicts every id with the same probability, whatever it reads; remembers what it read."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.read = vocabulary, []

    def forward(self, ids):
        self.read.append(ids)
        return torch.zeros(*ids.shape, 1)

    def logits(self, hidden):
        return torch.zeros(*hidden.shape[:-1], self.vocabulary)


@given(st.integers(1, 40), st.floats(0, 1))
def test_mask_has_the_asked_number_of_positions(length, ratio):
    mask = draw_mask((3, length), torch.full((3,), ratio), torch.Generator().manual_seed(1))
    # torch.full is float32: so is the product whose ceiling is taken.
    wanted = math.ceil(torch.tensor(ratio, dtype=torch.float32).mul(length).item())
    assert mask.sum(1).tolist() == [min(max(wanted, 1), length)] * 3


def test_losses_of_a_uniform_model_are_the_papers_weights(layout, dataset):
    """Text, weighted 1/t, is log V whatever t; image, weighted 1, is the masked share of log V."""
    stacked, condition = group([dataset[i] for i in range(2)] * 1, [Condition()] * 2)[0]
    model, n = Uniform(1000), stacked.target.batch
    losses = sft_losses(model, layout, stacked, condition, torch.Generator().manual_seed(0))
    assert losses.text.item() == pytest.approx(n * math.log(1000), rel=1e-5)
    ids = model.read[0]
    positions = layout.model_input(stacked.prompt, stacked.target).image_positions
    masked = (ids[:, positions] == layout.mask_id).float()
    weighted = (masked * stacked.image_weight.flatten(1)).sum() / len(positions)
    assert losses.image.item() == pytest.approx(weighted.item() * math.log(1000), rel=1e-5)


def test_groups_have_equal_shapes_and_lose_nothing(layout, dataset):
    examples = [dataset[i] for i in range(40)]
    rng = torch.Generator().manual_seed(0)
    groups = group(examples, draw_conditions(40, rng, text=0.2, image=0.2, both=0.2))
    assert sum(stacked.target.batch for stacked, _ in groups) == 40
    assert len({condition for _, condition in groups}) == 4
    codes = torch.cat([s.target.image.flatten() for s, _ in groups]).sort().values
    assert torch.equal(codes, torch.cat([e.target.image.flatten() for e in examples]).sort().values)


def test_dropped_conditions_are_not_read(layout, dataset):
    example = next(e for e in (dataset[i] for i in range(50)) if e.prompt.image is not None)
    for condition in (Condition(True, False), Condition(False, True), Condition(True, True)):
        (stacked, same), model = group([example], [condition])[0], Uniform(1000)
        sft_losses(model, layout, stacked, same, torch.Generator().manual_seed(0))
        wanted = layout.model_input(
            example.prompt,
            example.target,
            drop_text=condition.drop_text,
            drop_image=condition.drop_image,
        )
        start = int(wanted.image_positions[0])
        assert torch.equal(model.read[0][:, :start], wanted.ids[:, :start])


def test_condition_frequencies():
    drawn = draw_conditions(20000, torch.Generator().manual_seed(0), text=0.1, image=0.2, both=0.3)
    share = {c: drawn.count(c) / len(drawn) for c in set(drawn)}
    assert share[Condition(True, False)] == pytest.approx(0.1, abs=0.01)
    assert share[Condition(False, True)] == pytest.approx(0.2, abs=0.01)
    assert share[Condition(True, True)] == pytest.approx(0.3, abs=0.01)

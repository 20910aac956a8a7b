import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmada_parallel.mmp_core.state import Prompt
from mmada_parallel.training.sft.batches import MicroBatch, masked, stack
from mmada_parallel.training.sft.loss import Condition, draw_condition, draw_mask, masked_losses
from mmada_parallel.training.sft.settings import SFTSettings

WHOLE = SFTSettings(drop_text=0, drop_image=0, drop_both=0)


class Uniform(torch.nn.Module):
    """Predicts every id with the same probability, whatever it reads; remembers what it read."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.read = vocabulary, []
        self.config = SimpleNamespace(embedding_size=vocabulary)

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
    case = next(c for c in (dataset[i] for i in range(50)) if c.source is not None)
    batch = stack([masked(case, WHOLE, seed) for seed in range(2)])
    model, n = Uniform(1000), batch.target.batch
    losses = masked_losses(model, layout, batch)
    assert losses.text.item() == pytest.approx(n * math.log(1000), rel=1e-5)
    ids = model.read[0]
    positions = layout.model_input(batch.prompt, batch.target).image_positions
    hidden = (ids[:, positions] == layout.mask_id).float()
    weighted = (hidden * batch.image_weight.flatten(1)).sum() / len(positions)
    assert losses.image.item() == pytest.approx(weighted.item() * math.log(1000), rel=1e-5)
    plain = masked_losses(model, layout, replace(batch, image_weight=None))
    assert plain.image.item() == pytest.approx(
        hidden.sum().item() / len(positions) * math.log(1000), rel=1e-5
    )


def test_dropped_conditions_are_not_read(layout, dataset):
    case = next(c for c in (dataset[i] for i in range(50)) if c.source is not None)
    for settings, dropped in (
        (replace(WHOLE, drop_text=1), Condition(True, False)),
        (replace(WHOLE, drop_image=1), Condition(False, True)),
        (replace(WHOLE, drop_both=1), Condition(True, True)),
    ):
        batch, model = masked(case, settings, 0), Uniform(1000)
        assert isinstance(batch, MicroBatch) and isinstance(batch.prompt, Prompt)
        assert batch.condition == dropped
        masked_losses(model, layout, batch)
        wanted = layout.model_input(
            case.prompt, case.target, drop_text=dropped.drop_text, drop_image=dropped.drop_image
        )
        start = int(min(wanted.text_positions.min(), wanted.image_positions.min()))
        assert torch.equal(model.read[0][:, :start], wanted.ids[:, :start])


def test_condition_frequencies():
    rng = torch.Generator().manual_seed(0)
    drawn = [draw_condition(rng, text=0.1, image=0.2, both=0.3) for _ in range(20000)]
    share = {c: drawn.count(c) / len(drawn) for c in set(drawn)}
    assert share[Condition(True, False)] == pytest.approx(0.1, abs=0.01)
    assert share[Condition(False, True)] == pytest.approx(0.2, abs=0.01)
    assert share[Condition(True, True)] == pytest.approx(0.3, abs=0.01)

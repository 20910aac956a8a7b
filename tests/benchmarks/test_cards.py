"""The table of docs/your-card.md."""

import pytest
from mmada_parallel.benchmarks import cards


def test_the_page_has_the_table_that_the_script_makes():
    page = cards.PAGE.read_text(encoding="utf-8")
    assert cards.filled(page) == page
    assert f"{100 * cards.share_of_peak():.0f} %" in page


def test_the_measured_card_is_met():
    assert cards.edit_flop()["exact"] / (989e12 * cards.share_of_peak()) == pytest.approx(
        10.3, 0.02
    )


def test_training_costs_what_its_forwards_do():
    sft, pararl = cards.training_flop().values()
    forward = 37.1e12
    assert sft == pytest.approx(8 * 3.1 * forward, 0.05)
    assert pararl == pytest.approx(4 * 8 * (32 + 16 + 3 * (2 + 2 * 4.1)) * forward, 0.05)


def test_large_cards_hold_bf16_and_small_ones_stream():
    assert cards.fits(cards.Card("", 24, 1)) == "exact: bf16; cached: bf16"
    assert cards.fits(cards.Card("", 16, 1)) == "exact: int8; cached: int8"
    assert cards.fits(cards.Card("", 12, 1)) == "exact: int8; cached: nvfp4"
    assert "streamed" in cards.fits(cards.Card("", 6, 1))

import math

import numpy as np
import pytest
import torch
from mmada_parallel.views.plot import SIZE, line_plot

LABELS = {"x_label": "step", "y_label": "agreement"}
FIRST, SECOND = (31, 119, 180), (255, 127, 14)


def drawn(picture, colour, legend=0):
    """(rows, columns) of the pixels of one line, left of a ``legend`` so many pixels wide."""
    pixels = np.asarray(picture).astype(int)[:, : SIZE[0] - legend]
    return np.nonzero(np.abs(pixels - colour).max(axis=-1) < 40)


def test_lines_go_where_their_values_are():
    values = torch.stack([torch.linspace(0, 1, 9), torch.linspace(1, 0, 9)], dim=1)
    picture = line_plot(values, range(9), **LABELS)
    assert picture.size == (640, 400) and picture.mode == "RGB"
    for colour, rises in ((FIRST, True), (SECOND, False)):
        rows, columns = drawn(picture, colour, legend=50)
        left, right = rows[columns == columns.min()], rows[columns == columns.max()]
        assert (left.mean() > right.mean()) == rises  # rows count downwards
        assert columns.max() - columns.min() > 400 and rows.max() - rows.min() > 200


def test_one_line_has_no_legend_and_more_are_numbered():
    one = np.asarray(line_plot(torch.zeros(5, 1), range(5), **LABELS))
    assert (one[:, -15:] == 255).all()
    for count in (2, 64):
        many = np.asarray(line_plot(torch.zeros(5, count), range(5), **LABELS))
        assert (many[36:352, -90:] != 255).any()


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0, 1e-9, 1e9])
@pytest.mark.parametrize("points", [1, 5])
def test_equal_values_make_a_level_line(value, points):
    rows, columns = drawn(line_plot(torch.full((points, 1), value), range(points), **LABELS), FIRST)
    assert 0 < rows.max() - rows.min() < 10
    assert abs(rows.mean() - (36 + 352) / 2) < 3
    assert (columns.max() - columns.min() < 10) == (points == 1)


def test_steps_may_repeat_and_leave_some_out():
    values = torch.tensor([[0.0], [0.5], [1.0]])
    assert len(drawn(line_plot(values, [3, 90, 90], **LABELS), FIRST)[0])


@pytest.mark.parametrize("missing", [float("nan"), float("inf"), -float("inf")])
def test_missing_values_leave_a_gap(missing):
    values = torch.full((101, 1), 0.5)
    whole = drawn(line_plot(values, range(101), **LABELS), FIRST)[1]
    values[40:60] = missing
    columns = drawn(line_plot(values, range(101), **LABELS), FIRST)[1]
    assert np.diff(np.unique(whole)).max() == 1
    assert 100 < np.diff(np.unique(columns)).max() < 140


def test_nothing_but_missing_values_gives_empty_axes():
    picture = line_plot(torch.full((3, 1), float("nan")), range(3), **LABELS)
    assert not len(drawn(picture, FIRST)[0])


def test_points_without_lines():
    values = torch.tensor([[0.1], [0.9], [0.5]])
    columns = np.unique(drawn(line_plot(values, range(3), **LABELS, joined=False), FIRST)[1])
    assert (np.diff(columns) > 1).sum() == 2


@pytest.mark.parametrize("shape, places", [((3,), 3), ((0, 1), 0), ((3, 0), 3), ((3, 1), 2)])
def test_other_shapes_are_refused(shape, places):
    with pytest.raises(ValueError, match="needs values"):
        line_plot(torch.zeros(shape), range(places), **LABELS)


def test_a_long_line_keeps_its_peaks_and_its_ends():
    values = torch.zeros(1_000_003, 2)
    values[:, 1] = 0.5
    values[654_321, 0], values[123_456, 0], values[7, 1] = 1, -1, math.nan
    picture = line_plot(values, range(len(values)), **LABELS)
    rows, columns = drawn(picture, FIRST, legend=50)
    _, other = drawn(picture, SECOND, legend=50)
    assert rows.max() - rows.min() > 250
    for row, share in ((rows.min(), 0.654321), (rows.max(), 0.123456)):
        place = columns[rows == row].mean()
        assert abs(place - other.min() - share * (other.max() - other.min())) < 4

"""Plots as pictures, drawn with PIL alone, since ComfyUI brings no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIZE = (640, 400)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Place = tuple[float, float]

_SCALE = 3
_TOP, _BOTTOM, _RIGHT = 36, 48, 20
_PADDING, _TICK = 8, 4
_LEGEND_ROW, _LEGEND_COLUMN, _SWATCH = 18, 44, 14
_LEGEND_ROWS = (SIZE[1] - _TOP - _BOTTOM) // _LEGEND_ROW
_MANY_POINTS, _MOST_POINTS = 40, 4000
_FRAME, _GRID, _INK = "#9a9a9a", "#e6e6e6", "#303030"
_COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)


@dataclass(frozen=True)
class _Axis:
    """Pixels of values: ``low`` lies at ``start``, ``high`` at ``end``. ``ticks``: value, label."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[tuple[float, str]]

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_plot(
    values: Tensor,
    x: Sequence[int],
    *,
    x_label: str,
    y_label: str,
    joined: bool = True,
    names: Sequence[str] = (),
) -> Image.Image:
    """An RGB picture of 640x400 pixels with one line per column of ``values`` (S, B) over ``x``.

    ``x``: S whole numbers that do not decrease. Values that are not finite leave a gap; of more
    than 4000, which no picture shows apart, the lowest and highest of each stretch are drawn. With
    more than one column a legend numbers them from 0; with ``names``, one for each, it gives these.
    ``joined=False`` draws points without lines.

    Raises ``ValueError`` for other shapes or an empty plot.
    """
    if values.ndim != 2 or not values.numel() or len(values) != len(x):
        raise ValueError(
            f"line_plot needs values (S, B) and S places, got {tuple(values.shape)} and {len(x)}."
        )
    font = ImageFont.load_default(13)
    values = values.detach().cpu().double()
    shown = _shown(values)
    columns, steps = values.gather(0, shown).T.tolist(), torch.as_tensor(x)[shown].T.tolist()
    labels = list(names) or [str(number) for number in range(len(columns)) if len(columns) > 1]
    pitch = _LEGEND_COLUMN
    if names:
        pitch = round(_SWATCH + 3 * _PADDING + max(font.getlength(name) for name in names))
    horizontal, vertical = _axes(columns, x, font, pitch * math.ceil(len(labels) / _LEGEND_ROWS))
    colours = _colours(len(columns))
    canvas = Image.new("RGB", (SIZE[0] * _SCALE, SIZE[1] * _SCALE), "white")
    draw = ImageDraw.Draw(canvas)
    _draw_grid(draw, horizontal, vertical)
    for column, own, colour in zip(columns, steps, colours, strict=True):
        places = [
            (horizontal.at(a), vertical.at(v)) if math.isfinite(v) else None
            for a, v in zip(own, column, strict=True)
        ]
        _draw_line(draw, places, colour, joined)
    picture = canvas.resize(SIZE, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    _write_axes(draw, horizontal, vertical, font, x_label, y_label)
    _draw_legend(draw, list(zip(colours, labels, strict=False)), horizontal.end, pitch, font)
    return picture


def _shown(values: Tensor) -> Tensor:
    """Which of the values (S, B) are drawn, (K, B): all, or of more than ``_MOST_POINTS`` the
    lowest and the highest of each stretch."""
    count, width = values.shape
    if count <= _MOST_POINTS:
        return torch.arange(count)[:, None].expand(-1, width)
    length = math.ceil(2 * count / _MOST_POINTS)
    first = torch.arange(0, count, length)
    gaps = values.new_full((len(first) * length - count, width), math.nan)
    stretches = torch.cat((values, gaps)).view(-1, length, width)
    finite = stretches.isfinite()
    lowest = stretches.where(finite, math.inf).argmin(1)
    highest = stretches.where(finite, -math.inf).argmax(1)
    places = torch.stack((lowest, highest), 1).sort(1).values
    return (places + first[:, None, None]).flatten(0, 1)


def _axes(
    columns: list[list[float]], x: Sequence[int], font: Font, legend: int
) -> tuple[_Axis, _Axis]:
    finite = [v for column in columns for v in column if math.isfinite(v)] or [0.0, 1.0]
    middle = (min(finite) + max(finite)) / 2
    span = max(max(finite) - min(finite), 0.05 * abs(middle)) or 1.0
    low, high = middle - 0.55 * span, middle + 0.55 * span
    ticks = _ticks(low, high, 8)
    vertical = _Axis(low, high, SIZE[1] - _BOTTOM, _TOP, ticks)
    left = 2 * _PADDING + _TICK + max(font.getlength(label) for _, label in ticks)
    margin = 0.02 * (x[-1] - x[0]) or 1.0
    whole = [tick for tick in _ticks(x[0], x[-1], 10, smallest=1) if x[0] <= tick[0] <= x[-1]]
    right = SIZE[0] - max(_RIGHT, legend and _PADDING + legend)
    return _Axis(x[0] - margin, x[-1] + margin, left, right, whole), vertical


def _ticks(low: float, high: float, most: int, smallest: float = 0) -> list[tuple[float, str]]:
    """At most ``most + 1`` round numbers of ``low`` … ``high``, at least ``smallest`` apart."""
    wanted = (high - low) / most
    power = 10.0 ** math.floor(math.log10(wanted)) if wanted > 0 else 1.0
    step = max(smallest, next(m * power for m in (1, 2, 5, 10) if m * power >= wanted * 0.999))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, f"{k * step + 0.0:.{digits}f}") for k in range(first, last + 1)]


def _colours(count: int) -> list[str]:
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    return [f"hsv({360 * i // count}, 85%, {(85, 60)[i % 2]}%)" for i in range(count)]


def _scaled(*places: float) -> list[int]:
    return [round(place * _SCALE) for place in places]


def _draw_grid(draw: ImageDraw.ImageDraw, horizontal: _Axis, vertical: _Axis) -> None:
    left, right, bottom, top = horizontal.start, horizontal.end, vertical.start, vertical.end
    for value, _ in horizontal.ticks:
        place = horizontal.at(value)
        draw.line(_scaled(place, top, place, bottom), _GRID, _SCALE)
        draw.line(_scaled(place, bottom, place, bottom + _TICK), _FRAME, _SCALE)
    for value, _ in vertical.ticks:
        place = vertical.at(value)
        draw.line(_scaled(left, place, right, place), _GRID, _SCALE)
        draw.line(_scaled(left - _TICK, place, left, place), _FRAME, _SCALE)
    draw.line(_scaled(left, top, left, bottom, right, bottom), _FRAME, _SCALE)


def _draw_line(
    draw: ImageDraw.ImageDraw, places: list[Place | None], colour: str, joined: bool
) -> None:
    """``places``: pixels, ``None`` for a gap. Few points, and those that stand alone, are dots."""
    radius = 3 if joined else 4
    for run in _runs(places):
        if joined and len(run) > 1:
            draw.line(_scaled(*chain.from_iterable(run)), colour, 2 * _SCALE, joint="curve")
        if not joined or len(run) == 1 or len(places) <= _MANY_POINTS:
            for across, down in run:
                box = (across - radius, down - radius, across + radius, down + radius)
                draw.ellipse(_scaled(*box), colour)


def _runs(places: list[Place | None]) -> list[list[Place]]:
    """``places`` without the gaps, split at them."""
    runs: list[list[Place]] = [[]]
    for place in places:
        if place is None:
            runs.append([])
        else:
            runs[-1].append(place)
    return runs


def _write_axes(
    draw: ImageDraw.ImageDraw,
    horizontal: _Axis,
    vertical: _Axis,
    font: Font,
    x_label: str,
    y_label: str,
) -> None:
    below = vertical.start + _TICK + 2
    for value, label in horizontal.ticks:
        draw.text((horizontal.at(value), below), label, _INK, font, anchor="mt")
    for value, label in vertical.ticks:
        place = (horizontal.start - _TICK - 4, vertical.at(value))
        draw.text(place, label, _INK, font, anchor="rm")
    middle = (horizontal.start + horizontal.end) / 2
    draw.text((middle, SIZE[1] - _PADDING), x_label, _INK, font, anchor="mb")
    draw.text((_PADDING, _TOP / 2), y_label, _INK, font, anchor="lm")


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    entries: list[tuple[str, str]],
    left: float,
    pitch: int,
    font: Font,
) -> None:
    """``entries``: colour and label of each line."""
    for number, (colour, label) in enumerate(entries):
        column, row = divmod(number, _LEGEND_ROWS)
        across = left + _PADDING + column * pitch
        middle = _TOP + (row + 0.5) * _LEGEND_ROW
        draw.rectangle((across, middle - 1, across + _SWATCH, middle + 1), colour)
        draw.text((across + _SWATCH + 5, middle), label, _INK, font, anchor="lm")

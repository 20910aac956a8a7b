"""Sizes and masks as users give them, brought to what a model takes; a sentence for each change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .checkpoint.load import Model
from .errors import InputError, sentence
from .image.files import load_image
from .image.mask_settings import MaskSettings
from .image.masks import (
    Region,
    bounds_of,
    cells_of,
    covered,
    is_painted,
    mask_values,
    regions_around,
)
from .image.placement import Box, Size
from .pipeline import decode_pixels, encode_seen, legal_size, seen_size
from .state import MASKED, Prompt, TokenState

Counter = Callable[[int, int], object]
"""Called with how many of how many are done."""
LARGEST_SIDE = 4096
"""Of a side that follows from the other."""
_NOTICEABLE = 0.02
"""Share of a mask."""
_STRANGE = 0.1
"""Mean difference (0 … 1) of a picture and what its tokens give back. The largest of 150 scenes of
the toy world was 0.055; most photos had 0.15 to 0.64."""


@dataclass(frozen=True)
class FittedInput:
    """What to encode. ``size``: of the result in pixels, None for the size at which the model sees
    the picture. ``masks``: one for each picture, None where nothing is painted. ``regions``: the
    part of each picture that the model gets, None for all of it. ``notes``: sentences about what
    was changed."""

    size: Size | None
    masks: tuple[Image.Image | None, ...]
    regions: tuple[Region | None, ...]
    notes: tuple[str, ...]


def fitted_input(
    model: Model,
    size: Size,
    picture: Size | None = None,
    masks: Sequence[Image.Image] = (),
    count: int = 1,
    settings: MaskSettings | None = None,
    *,
    callback: Counter = lambda done, total: None,
) -> FittedInput:
    """Bring the wanted ``size`` of the result, (width, height) with 0 for an open side, and
    ``masks`` to what a model takes for ``count`` pictures of one size, ``picture``.

    An open side follows from the other, in the shape that the model sees. Sides are rounded to
    whole image tokens; with a mask the result has the size at which the model sees the picture.
    Masks are stretched over the pictures, and used in turn where they are fewer; ``callback`` is
    called before each, and may raise.
    """
    fitted = FittedInput(None, (None,) * count, (None,) * count, ())
    if masks and picture is not None:
        fitted = _with_masks(model, fitted, masks, picture, settings or MaskSettings(), callback)
    if not any(size):
        return fitted
    if any(fitted.masks):
        note = sentence(
            "With a mask the result has the size at which the model sees the picture; the width "
            "and height that were set are unused."
        )
        return replace(fitted, notes=(*fitted.notes, note))
    shape = (1, 1) if picture is None else seen_size(model, picture)
    sides, note = _whole_size(model, size, shape)
    return replace(fitted, size=sides, notes=(*fitted.notes, *note))


def _whole_size(model: Model, size: Size, shape: Size) -> tuple[Size, list[str]]:
    width = size[0] or min(LARGEST_SIDE, size[1] * shape[0] / shape[1])
    height = size[1] or min(LARGEST_SIDE, size[0] * shape[1] / shape[0])
    legal, unit = legal_size(model, (width, height)), model.downsample
    if legal == size:
        return legal, []
    asked = f"{size[0]}x{size[1]}"
    if not all(size):
        width, height = sentence(f"a width of {size[0]}"), sentence(f"a height of {size[1]}")
        asked = width if size[0] else height
    return legal, [
        sentence(
            f"The result has {legal[0]}x{legal[1]} pixels, the nearest to {asked} that is made of "
            f"{unit}x{unit} image tokens."
        )
    ]


def _with_masks(
    model: Model,
    fitted: FittedInput,
    masks: Sequence[Image.Image],
    picture: Size,
    settings: MaskSettings,
    callback: Counter,
) -> FittedInput:
    count = len(fitted.masks)
    notes = [] if len(masks) in (1, count) else [count_note("mask", len(masks), count)]
    each = [masks[i % len(masks)] for i in range(count)]
    values = []
    for number, mask in enumerate(each):
        callback(number, count)
        values.append(mask_values(mask)[0])
    blank = [number for number, mask in enumerate(values, 1) if not is_painted(mask)]
    if blank:
        which = ", ".join(map(str, blank))
        notes.append(
            sentence("The mask is not painted: the whole picture is drawn anew.")
            if len(blank) == count
            else sentence(f"Mask {which} is not painted: the whole picture is drawn anew.")
        )
    if len(blank) < count and _other_shape(each[0].size, picture):
        given, wanted = (f"{width}x{height}" for width, height in (each[0].size, picture))
        notes.append(
            sentence(f"The mask of {given} pixels is stretched over the picture of {wanted}.")
        )
    painted = tuple(None if n in blank else mask for n, mask in enumerate(each, 1))
    fitted = replace(fitted, masks=painted)
    if settings.region == "mask" and any(painted):
        regions, note = _regions(model, values, blank, picture, settings.context)
        notes.append(note)
        fitted = replace(fitted, regions=regions or fitted.regions)
    return replace(fitted, notes=tuple(notes))


def _regions(
    model: Model, values: Sequence[Tensor], blank: Sequence[int], picture: Size, context: float
) -> tuple[tuple[Region, ...], str]:
    if blank:
        return (), sentence("The model sees the whole pictures, since not every mask is painted.")
    bounds = [bounds_of(mask, picture) for mask in values]
    regions = regions_around(bounds, picture, context, lambda part: seen_size(model, part))
    left, top, right, bottom = regions[0]
    width, height = right - left, bottom - top
    if (width, height) == picture:
        return (), sentence(
            "The model sees the whole picture: the area around the mask would be no smaller."
        )
    (across, down), count = picture, len(regions)
    alone = sentence(
        f"The model sees {width}x{height} of the picture's {across}x{down} pixels, around the "
        f"mask, from {left}, {top}."
    )
    several = sentence(
        f"The model sees {width}x{height} of each picture's {across}x{down} pixels, around the "
        "mask."
    )
    return tuple(regions), alone if count == 1 else several


def _other_shape(mask: Size, picture: Size) -> bool:
    """Whether the mask's shape differs by more than rounding a scaled size to whole pixels."""
    (low, high), (other_low, other_high) = (
        ((side - 1) / full, (side + 1) / full) for side, full in zip(mask, picture, strict=True)
    )
    return high < other_low or other_high < low


def count_note(name: str, given: int, count: int, wanted: str = "picture") -> str:
    """What happens to ``given`` things where ``count`` are needed."""
    each = f"{given} {name}s for {count} {wanted}{'s' if count > 1 else ''}"
    if given > count:
        return sentence(f"{each}: the others are not used.")
    return sentence(f"{each}: they are used in turn.")


def selected_note(start: TokenState) -> str:
    """How much of the picture is drawn anew from ``start``."""
    masked = start.image == MASKED
    counts = [int(n) for n in masked.sum((1, 2))]
    some = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return sentence(f"{some} of {masked[0].numel()} image tokens are drawn anew.")


def strange_note(
    model: Model, prompt: Prompt, pictures: Iterable[Image.Image], regions: Sequence[Region | None]
) -> list[str]:
    """A sentence where a checkpoint of a small world was given another picture than its world's:
    ``pictures``, or their ``regions``, of which its image tokenizer keeps nothing."""
    if model.tokenizer.unk_token_id is None or prompt.image is None:
        return []
    codes = TokenState(torch.zeros(prompt.batch, 0, dtype=torch.int64), prompt.image)
    kept = decode_pixels(model, codes)
    for picture, region, back in zip(pictures, regions, kept, strict=True):
        part = load_image(picture).crop(region or (0, 0, *picture.size))
        seen = model.variant.fit(part, (back.shape[1], back.shape[0]))
        levels = torch.from_numpy(np.array(seen.convert("RGB"))).float() / 255
        if float((levels - back).abs().mean()) > _STRANGE:
            return [
                sentence(
                    "This checkpoint does not know pictures like this one: it sees another in its "
                    "place, and the answer means nothing. Use a picture of Demo Scene, with this "
                    "checkpoint as its world, or a released checkpoint."
                )
            ]
    return []


def unseen_note(start: TokenState, masks: Iterable[Image.Image | None]) -> list[str]:
    """A sentence where what the model sees of the pictures leaves a part of their masks out."""
    shares = [0.0]
    for place, mask in zip(start.placement or (), masks, strict=True):
        if mask is not None:
            values, box = mask_values(mask), place.in_size(mask.size).box
            seen = covered(values, (1, 1), box).sum() * (box[2] - box[0]) * (box[3] - box[1])
            shares.append(1 - float(seen / (covered(values, (1, 1)).sum() * values.numel())))
    if max(shares) < _NOTICEABLE:
        return []
    return [
        sentence(
            f"{round(100 * max(shares))} % of the mask lies outside what the model sees of the "
            "picture, and stays as it is; with region set to mask the model sees all of it."
        )
    ]


def mask_box(state: TokenState, sample: int, mask: Tensor, unit: int) -> Box | None:
    """Where a sample's picture, of ``unit`` pixels per token, lies in a mask (…, h, w): a mask of
    the original's size lies on the original, any other (None) on the whole picture."""
    place = state.placement[sample] if state.placement else None
    size, seen = (mask.shape[-1], mask.shape[-2]), (state.grid[1] * unit, state.grid[0] * unit)
    return place.box if place and size == place.original != seen else None


def selected_cells(
    state: TokenState,
    masks: Tensor,
    unit: int,
    coverage: float,
    grow: int,
    *,
    callback: Counter = lambda done, total: None,
) -> tuple[Tensor, list[str]]:
    """(B, H, W) bool: the image tokens of each sample that ``masks`` (B, h, w) select, see
    :func:`mask_box`, and a sentence where they select nothing. ``callback`` is called before each
    sample, and may raise."""
    if not any(map(is_painted, masks)):
        nothing = torch.zeros(state.image.shape, dtype=torch.bool)
        return nothing, [sentence("The mask is not painted: it selects nothing.")]
    cells = []
    for i, mask in enumerate(masks):
        callback(i, len(masks))
        box = mask_box(state, i, mask, unit)
        cells.append(cells_of(mask[None], state.grid, coverage, grow, box=box))
    return torch.cat(cells), []


def in_turn(things: Tensor, count: int, name: str, wanted: str) -> tuple[Tensor, list[str]]:
    """``count`` rows of ``things`` (N, …) in turn; a sentence where N is not 1 or that."""
    notes = [] if len(things) in (1, count) else [count_note(name, len(things), count, wanted)]
    if len(things) == count:  # large masks take a second per GiB to copy
        return things, notes
    return things[torch.arange(count) % len(things)], notes


def fitted_codes(
    model: Model,
    pictures: Sequence[Image.Image],
    state: TokenState,
    *,
    callback: Counter = lambda done, total: None,
) -> tuple[Tensor, list[str]]:
    """(B, H, W) on the CPU: codes of ``pictures`` brought to the size of the answer ``state``, and
    a sentence for each thing that was changed. Of pictures of the original's size the part is taken
    that ``state`` is about. ``callback`` is called before each picture, and may raise."""
    (height, width), unit = state.grid, model.downsample
    if not height or not width:
        raise InputError("The prompt asks for text alone: there is no picture to set.")
    size, given = (width * unit, height * unit), pictures[0].size
    place = state.placement[0] if state.placement else None
    whole = model.variant.placement(given, size)
    part = None
    if place and given == place.original and not any(place.margins) and place.box != whole.box:
        part = place.box  # the prompt is about a region of the original
    encoded = []
    for number, picture in enumerate(pictures):
        callback(number, len(pictures))
        upright = load_image(picture)
        seen = model.variant.fit(upright.crop(part) if part else upright, size)
        encoded.append(encode_seen(model, [seen]).cpu())
    codes, notes = in_turn(torch.cat(encoded), state.batch, "picture", "result")
    if given != size and seen_size(model, given) != size:
        notes.append(
            sentence(
                f"The picture is brought from {given[0]}x{given[1]} to {size[0]}x{size[1]} pixels, "
                "the result's size."
            )
        )
    return codes, notes

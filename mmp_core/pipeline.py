"""Encode instruction and picture to a prompt, decode tokens to words and pictures."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .checkpoint.load import Model
from .errors import InputError, shown
from .image.files import Picture, load_image
from .image.masks import Region, cells_of, is_painted, mask_values
from .image.pictures import Offset, check_offset, to_pil, to_pixels
from .image.placement import Placement, Size
from .outside import (
    MOST_SAMPLES,
    MOST_SIDE,
    MOST_TEXT,
    check_kind,
    check_model,
    checked_count,
    checked_text,
)
from .state import MASKED, Prompt, TokenState
from .variants.base import Answer

GREY = (0.5, 0.5, 0.5)
NO_PICTURE = (0, 0)
"""The size of the result where the answer is text alone."""
_ENCODED_BY = ("variant", "layout", "image_tokenizer")
_log = logging.getLogger(__name__)


def encode_instruction(
    model: Model,
    instruction: str,
    image: Picture | None = None,
    *,
    size: Size | None = None,
    text_length: int | None = None,
    batch: int = 1,
    mask: Picture | None = None,
    coverage: float = 0.0,
    grow: int = 0,
    region: Region | None = None,
    offset: Offset = "center",
    task: str | None = None,
    reference: Picture | None = None,
    negative: str = "",
) -> Prompt:
    """Make the prompt for editing ``image`` by ``instruction``, or for generating without an image.

    ``size``: (width, height) of the result in pixels, multiples of ``model.downsample``; by default
    that of the input image as the model sees it, else a square of the checkpoint's own size;
    :data:`NO_PICTURE` for text alone. ``text_length``: tokens of the answer's text, up to 4096, 0
    for an image alone; by default the checkpoint's own, or 0 where the task is answered with an
    image alone. ``task``: one of the family's, see ``variants.base.Variant.tasks``; by default the
    first that takes these pictures. ``reference``: a second picture, for tasks that take two.
    ``batch``: samples of this one prompt, all masked. ``mask``: white where the picture is
    to be painted anew, over the whole picture whatever its size; elsewhere its image tokens stay as
    they are, bit for bit. One that is not painted at all is no mask. ``coverage``, ``grow``: see
    :func:`.masks.cells_of`. ``region``: the part of the upright picture that the model gets, by
    default all of it. ``offset``: see :func:`.pictures.fit_image`. ``negative``: an instruction
    that guidance moves away from, in its branches without the instruction.

    Raises ``InputError`` for a size, length, picture, mask or region that cannot be used, and for
    a task that the family was not trained on, or a negative instruction for one that has none.
    """
    check_model(model, *_ENCODED_BY)
    checked_text(instruction, "The instruction")
    checked_text(negative, "The negative instruction")
    batch = checked_count(batch, "batch", 1, MOST_SAMPLES)
    if image is None and reference is not None:
        raise InputError("A second picture needs a first one: give it as image.")
    pictures = (image is not None) + (reference is not None)
    size = None if size is None else _pixels("size", size, "(width, height)")
    if region is not None:
        region = _pixels("region", region, "(left, top, right, bottom)")
    task = model.variant.task_for(task, pictures, text_alone=size == NO_PICTURE)
    size, text_length = _answered(model, task, size, text_length)
    if image is None and (mask is not None or region is not None):
        raise InputError("A mask needs an input picture: give one, or leave the mask out.")
    codes, placement, second = None, None, None
    if image is not None:
        codes, placement = _encoded(model, load_image(image), region, offset, task)
    if reference is not None:
        second = _encoded(model, load_image(reference), None, offset, task)[0].expand(batch, -1, -1)
    if size is None and codes is not None:
        grid = codes.shape[1], codes.shape[2]
    else:
        grid = grid_of(model, size or (model.default_image_size, model.default_image_size))
    model.variant.check_answer(text_length, grid)
    initial = TokenState.masked(batch, text_length, grid)
    if placement is not None and codes is not None and min(grid):
        answer = placement.resized((grid[1] * model.downsample, grid[0] * model.downsample))
        initial = replace(initial, placement=(answer,) * batch)
        if mask is not None:
            around = _around(model, mask, codes, answer, coverage, grow)
            initial = replace(initial, image=around.expand(batch, -1, -1))
    codes = None if codes is None else codes.expand(batch, -1, -1)

    def prompt(words: str) -> Prompt:
        if not task:
            return model.layout.encode(words, codes, initial)
        return model.layout.encode_task(task, words, codes, second, initial)

    if not negative.strip():
        return prompt(instruction)
    _check_reads(model, task)
    return replace(prompt(instruction), negative=prompt(negative).instruction)


def _pixels(what: str, given: Any, expected: str) -> Any:
    """``given`` as a tuple of whole numbers, as many as ``expected`` names."""
    try:
        values = tuple(given)
    except TypeError:
        values = ()
    whole = all(isinstance(v, Integral) and not isinstance(v, bool) for v in values)
    if len(values) != expected.count(",") + 1 or not whole:
        raise InputError(f"{what} is {shown(given)}; expected {expected} in whole pixels.")
    return tuple(map(int, values))


def _check_reads(model: Model, task: str) -> None:
    """Refuse a negative instruction for a task that has none."""
    if task and not model.variant.tasks[task].reads_instruction:
        raise InputError(
            f"{model.variant.name} does not read an instruction for the task {task!r}, nor a "
            "negative one: leave it empty."
        )


def _answered(
    model: Model, task: str, size: Size | None, text_length: int | None
) -> tuple[Size | None, int]:
    """Size and length of the answer to ``task``, by default those of a text alone, an image alone,
    or both. Raises ``InputError`` for a length out of range."""
    if task_answer(model, task) == "text" and size is None:
        size = NO_PICTURE
    if text_length is None:
        with_text = "text and image" in model.variant.answers or size == NO_PICTURE
        text_length = model.default_text_length if with_text else 0
    return size, checked_count(text_length, "text_length", 0, MOST_TEXT)


def task_answer(model: Model, task: str) -> Answer | None:
    """What ``task`` is answered with; ``None`` where the family names no tasks."""
    return model.variant.tasks[task].answer if task else None


def encode_image(model: Model, image: Picture, *, offset: Offset = "center") -> Tensor:
    """Codes (1, h, w) of a picture, cropped or squashed as its family does. Its size is about the
    area of the checkpoint's default size, see :func:`seen_size`."""
    check_model(model, *_ENCODED_BY)
    check_offset(offset)
    return encode_seen(model, [_fitted(model, load_image(image), offset)])


def encode_seen(model: Model, images: Sequence[Image.Image]) -> Tensor:
    """Codes (N, h, w) of pictures of one size, as ``model.variant.fit`` gives them."""
    pixel_range = model.image_tokenizer.pixel_range
    pixels = torch.cat([to_pixels(image, pixel_range) for image in images])
    return model.image_tokenizer.encode(pixels.to(model.device))


def seen_size(model: Model, size: Size, task: str = "") -> Size:
    """(width, height) that a picture of ``size`` has as the model sees it for ``task``."""
    own = model.variant.tasks[task].input_size if task else None
    seen = own or model.variant.input_size
    return seen(size, model.default_image_size, model.downsample)


def _fitted(model: Model, upright: Image.Image, offset: Offset, task: str = "") -> Image.Image:
    return model.variant.fit(upright, seen_size(model, upright.size, task), offset=offset)


def _encoded(
    model: Model, upright: Image.Image, region: Region | None, offset: Offset, task: str
) -> tuple[Tensor, Placement]:
    """Codes (1, h, w) on the CPU of a picture's region, and where it lies in the picture."""
    left, top, right, bottom = region or (0, 0, *upright.size)
    inside = 0 <= left < right <= upright.width and 0 <= top < bottom <= upright.height
    if not inside:
        raise InputError(
            f"The region {left}, {top} to {right}, {bottom} lies outside the picture of "
            f"{upright.width}x{upright.height} pixels: choose another."
        )
    check_offset(offset)
    part = upright.crop((left, top, right, bottom))
    seen = seen_size(model, part.size, task)
    same_offset = copy.copy(offset) if isinstance(offset, random.Random) else offset
    placement = model.variant.placement(part.size, seen, offset=same_offset)
    codes = encode_seen(model, [_fitted(model, part, offset, task)])
    return codes.cpu(), placement.within(upright.size, left, top)


def _around(
    model: Model,
    mask: Picture,
    codes: Tensor,
    placement: Placement,
    coverage: float,
    grow: int,
) -> Tensor:
    """(1, H, W): the input's codes, masked where the mask selects them."""
    grid = placement.size[1] // model.downsample, placement.size[0] // model.downsample
    if codes.shape[1:] != grid:
        raise InputError(
            f"With a mask the result has the input's size, {codes.shape[2] * model.downsample}x"
            f"{codes.shape[1] * model.downsample} as the model sees it: leave the size out."
        )
    values = mask_values(mask)
    if not is_painted(values):
        _log.info("The mask is not painted: the whole picture is drawn anew.")
        return torch.full_like(codes, MASKED)
    box = placement.in_size((values.shape[2], values.shape[1])).box
    cells = cells_of(values, grid, coverage, grow, box=box)
    if not cells.any():
        raise InputError(
            "The mask covers no part of the picture as the model sees it: paint a larger one, "
            "lower the coverage, or set region to mask."
        )
    return codes.masked_fill(cells, MASKED)


def legal_size(model: Model, size: tuple[float, float]) -> Size:
    """The size nearest to ``size`` that is made of whole image tokens."""
    unit = model.downsample
    width, height = (max(unit, round(side / unit) * unit) for side in size)
    return width, height


def grid_of(model: Model, size: Size) -> tuple[int, int]:
    """(height, width) in image codes of ``size`` (width, height) in pixels. Raises ``InputError``
    naming the nearest valid size."""
    unit = model.downsample
    if tuple(size) == NO_PICTURE:
        return 0, 0
    if max(size) > MOST_SIDE:
        raise InputError(f"The size {size[0]}x{size[1]} has a side above {MOST_SIDE} pixels.")
    nearest = legal_size(model, size)
    if tuple(size) != nearest:
        raise InputError(
            f"The size {size[0]}x{size[1]} is not made of {unit}x{unit} image tokens; the nearest "
            f"that is: {nearest[0]}x{nearest[1]}."
        )
    return size[1] // unit, size[0] // unit


def decode_text(model: Model, state: TokenState, *, masked: str = "") -> list[str]:
    """The text of each sample; ``masked`` stands for each masked position. Raises ``InputError``
    for tokens that the checkpoint does not have."""
    check_model(model, "transformer", "layout")
    check_kind(state, TokenState, "state", "tokens")
    checked_text(masked, "masked")
    rows = model.transformer.config.embedding_size
    if state.text.numel() and not MASKED <= int(state.text.min()) <= int(state.text.max()) < rows:
        raise InputError(
            f"The text has tokens outside 0 to {rows - 1}, the checkpoint's: load the one that it "
            "was made with."
        )
    return model.layout.decode_text(state.text, masked=masked)


def decode_image(
    model: Model, state: TokenState, *, fill: tuple[float, float, float] = GREY
) -> list[Image.Image]:
    """The picture of each sample, masked patches in the colour ``fill`` (RGB, 0 … 1); 0x0 pixels
    where the answer is text alone."""
    pixels = _decode(model, state, fill)
    return to_pil(pixels, model.image_tokenizer.pixel_range)


def decode_pixels(
    model: Model, state: TokenState, *, fill: tuple[float, float, float] = GREY
) -> Tensor:
    """The same as a float tensor (B, H, W, 3) in 0 … 1 on the CPU."""
    decoded = _decode(model, state, fill).float()
    low, high = model.image_tokenizer.pixel_range
    pixels = (decoded - low) / (high - low)
    return pixels.permute(0, 2, 3, 1).clamp(0, 1).cpu().contiguous()


def masked_pixels(model: Model, state: TokenState) -> Tensor:
    """(B, H, W) bool on the CPU: the pixels of masked image tokens."""
    check_model(model, "image_tokenizer")
    check_kind(state, TokenState, "state", "tokens")
    return _enlarged(state.image == MASKED, model.downsample).cpu()


@torch.no_grad()
def _decode(model: Model, state: TokenState, fill: tuple[float, float, float]) -> Tensor:
    """(B, 3, H, W) in the tokenizer's range. Masked codes are decoded as the mean of the others,
    since the decoder mixes neighbours, and then painted over."""
    check_model(model, "image_tokenizer", "device")
    check_kind(state, TokenState, "state", "tokens")
    painted = _colour(fill)
    tokenizer, codes = model.image_tokenizer, state.image.to(model.device)
    if not codes.numel():
        return torch.zeros(codes.shape[0], 3, 0, 0, device=model.device)
    masked = codes == MASKED
    vectors = tokenizer.vectors(codes.masked_fill(masked, 0))
    known = (~masked)[:, None].to(vectors.dtype)
    total = (vectors * known).sum(dim=(2, 3), keepdim=True)
    mean = total / known.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    pixels = tokenizer.decode_vectors(torch.where(masked[:, None], mean, vectors))
    if not pixels.isfinite().all():
        raise InputError(
            "The image tokenizer gives pixels that are not finite numbers: its weights are "
            "damaged; download it again."
        )
    low, high = tokenizer.pixel_range
    colour = painted.to(pixels).view(1, 3, 1, 1) * (high - low) + low
    paint = _enlarged(masked, model.downsample)[:, None]
    return torch.where(paint, colour, pixels.clamp(low, high))


def _colour(fill: Any) -> Tensor:
    """(3,) float32. Raises ``InputError`` for what is not a colour."""
    try:
        colour = torch.tensor(tuple(fill), dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        colour = torch.empty(0)
    if colour.shape != (3,) or not ((colour >= 0) & (colour <= 1)).all():
        raise InputError(f"fill is {shown(fill)}; expected red, green and blue, each from 0 to 1.")
    return colour


def _enlarged(cells: Tensor, factor: int) -> Tensor:
    return cells.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)

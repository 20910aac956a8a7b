"""From instruction and picture to a prompt, and from tokens back to words and pictures."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from .checkpoint.load import Model
from .editing import cells_of
from .errors import InputError
from .image.pictures import (
    UNIT_RANGE,
    Size,
    load_image,
    to_pil,
    to_pixels,
)
from .state import MASKED, Prompt, TokenState

GREY = (0.5, 0.5, 0.5)
NO_PICTURE = (0, 0)
"""The size of the result where the answer is text alone."""
_COVERED = 0.1


def encode_instruction(
    model: Model,
    instruction: str,
    image: Image.Image | str | os.PathLike | None = None,
    *,
    size: Size | None = None,
    text_length: int | None = None,
    batch: int = 1,
    mask: Image.Image | None = None,
    offset: Literal["center"] | random.Random = "center",
) -> Prompt:
    """The prompt for editing ``image`` by ``instruction``, or for generating without an image.

    ``size``: (width, height) of the result in pixels, multiples of ``model.downsample``; by
    default that of the input image as the model sees it, else a square of the checkpoint's own
    size; :data:`NO_PICTURE` for text alone, where the family answers so. ``text_length``: tokens of
    the answer's text, 1 … 4096; by default the checkpoint's own; 0 for an image alone.
    ``batch``: samples of this one prompt, all undecided. ``mask``: of mode "L", white where the
    picture is to be painted anew; elsewhere its image tokens stay as they are, bit for bit.
    ``offset``: see ``images.fit_image``.

    Raises ``InputError`` for a size, length, picture or mask that cannot be used.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}; expected at least 1.")
    length = model.default_text_length if text_length is None else text_length
    if not 0 <= length <= 4096:
        raise InputError(f"text_length is {length}; expected 1 to 4096 tokens.")
    same_offset = copy.copy(offset)
    codes = None if image is None else encode_image(model, image, offset=offset)
    if size is not None:
        grid = grid_of(model, size)
    elif codes is not None:
        grid = codes.shape[1], codes.shape[2]
    else:
        grid = grid_of(model, (model.default_image_size, model.default_image_size))
    model.variant.check_answer(length, grid)
    initial = TokenState.masked(batch, length, grid)
    if mask is not None:
        initial = replace(initial, image=_outside(model, mask, image, codes, grid, same_offset))
        initial = replace(initial, image=initial.image.expand(batch, -1, -1))
    codes = None if codes is None else codes.cpu().expand(batch, -1, -1)
    return model.layout.encode(instruction, codes, initial)


def encode_image(
    model: Model,
    image: Image.Image | str | os.PathLike,
    *,
    offset: Literal["center"] | random.Random = "center",
) -> Tensor:
    """Codes (1, h, w) of a picture, cropped or squashed as its family does.

    Its size is about the area of the checkpoint's default size, see :func:`seen_size`.
    """
    return encode_seen(model, [_fitted(model, image, offset)])


def encode_seen(model: Model, images: Sequence[Image.Image]) -> Tensor:
    """Codes (N, h, w) of pictures of one size, as ``model.variant.fit`` gives them."""
    pixel_range = model.image_tokenizer.pixel_range
    pixels = torch.cat([to_pixels(image, pixel_range) for image in images])
    return model.image_tokenizer.encode(pixels.to(model.device))


def seen_size(model: Model, size: Size) -> Size:
    """(width, height) that a picture of ``size`` has as the model sees it."""
    return model.variant.input_size(size, model.default_image_size, model.downsample)


def _fitted(
    model: Model, image: Image.Image | str | os.PathLike, offset: Literal["center"] | random.Random
) -> Image.Image:
    upright = load_image(image)
    return model.variant.fit(upright, seen_size(model, upright.size), offset=offset)


def _outside(
    model: Model,
    mask: Image.Image,
    image: Image.Image | str | os.PathLike | None,
    codes: Tensor | None,
    grid: tuple[int, int],
    offset: Literal["center"] | random.Random,
) -> Tensor:
    """(1, H, W): the input's codes, undecided where the mask covers more than a tenth of one."""
    if codes is None:
        raise InputError("A mask needs an input picture: give one, or leave the mask open.")
    if codes.shape[1:] != grid:
        raise InputError(
            f"With a mask the result has the input's size, {codes.shape[2] * model.downsample}x"
            f"{codes.shape[1] * model.downsample} as the model sees it: leave the size open."
        )
    whole = mask.convert("RGB").resize(load_image(image).size, Image.Resampling.BILINEAR)
    painted = to_pixels(_fitted(model, whole, offset), UNIT_RANGE)[:, 0]
    cells = cells_of(painted, grid, _COVERED)
    if not cells.any():
        raise InputError(
            "The mask covers no part of the picture as the model sees it: paint a larger one, or "
            "leave the mask open."
        )
    return codes.cpu().masked_fill(cells, MASKED)


def grid_of(model: Model, size: Size) -> tuple[int, int]:
    """(height, width) in image codes of ``size`` (width, height) in pixels.

    Raises ``InputError`` naming the nearest valid size.
    """
    unit = model.downsample
    nearest = tuple(max(unit, round(side / unit) * unit) for side in size)
    if tuple(size) == NO_PICTURE:
        return 0, 0
    if tuple(size) != nearest:
        raise InputError(
            f"The size {size[0]}x{size[1]} is not made of {unit}x{unit} image tokens; the nearest "
            f"that is: {nearest[0]}x{nearest[1]}."
        )
    return size[1] // unit, size[0] // unit


def decode_text(model: Model, state: TokenState, *, masked: str = "") -> list[str]:
    """The text of each sample; ``masked`` stands for each undecided position."""
    return model.layout.decode_text(state.text, masked=masked)


def decode_image(
    model: Model, state: TokenState, *, fill: tuple[float, float, float] = GREY
) -> list[Image.Image]:
    """The picture of each sample, undecided patches in the colour ``fill`` (RGB, 0 … 1)."""
    return to_pil(_decode(model, state, fill), model.image_tokenizer.pixel_range)


def decode_pixels(
    model: Model, state: TokenState, *, fill: tuple[float, float, float] = GREY
) -> Tensor:
    """As :func:`decode_image`, as a float tensor (B, H, W, 3) in 0 … 1 on the CPU."""
    low, high = model.image_tokenizer.pixel_range
    pixels = (_decode(model, state, fill).float() - low) / (high - low)
    return pixels.permute(0, 2, 3, 1).clamp(0, 1).cpu().contiguous()


def undecided_pixels(model: Model, state: TokenState) -> Tensor:
    """(B, H, W) bool on the CPU: the pixels of undecided image tokens."""
    return _enlarged(state.image == MASKED, model.downsample).cpu()


@torch.no_grad()
def _decode(model: Model, state: TokenState, fill: tuple[float, float, float]) -> Tensor:
    """(B, 3, H, W) in the tokenizer's range.

    Undecided codes are decoded as the mean of the decided ones, as their neighbours see them, and
    then painted over.
    """
    tokenizer, codes = model.image_tokenizer, state.image.to(model.device)
    if not codes[0].numel():
        return torch.zeros(codes.shape[0], 3, 0, 0, device=model.device)
    undecided = codes == MASKED
    vectors = tokenizer.vectors(codes.clamp_min(0))
    decided = (~undecided)[:, None].to(vectors.dtype)
    total = (vectors * decided).sum(dim=(2, 3), keepdim=True)
    mean = total / decided.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    pixels = tokenizer.decode_vectors(torch.where(undecided[:, None], mean, vectors))
    low, high = tokenizer.pixel_range
    colour = pixels.new_tensor(fill).view(1, 3, 1, 1) * (high - low) + low
    paint = _enlarged(undecided, model.downsample)[:, None]
    return torch.where(paint, colour, pixels.clamp(low, high))


def _enlarged(cells: Tensor, factor: int) -> Tensor:
    return cells.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)

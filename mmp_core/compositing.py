"""Put back: an edit laid on the original at its full resolution, the rest of it untouched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .checkpoint.load import Model
from .errors import InputError, sentence
from .files import Tell
from .image.blending import Fine, Layer, blended, original_part
from .image.changes import (
    affine_change,
    changed_area,
    dilated,
    feathered,
    new_structure,
    seam_correction,
)
from .image.files import Picture, image_of, levels_of, load_image, read_original
from .image.masks import covered, is_painted, mask_values
from .image.placement import Placement, Size
from .image.put_back_settings import Mode, PutBackSettings
from .outside import check_kind, check_model
from .pipeline import decode_pixels, masked_pixels
from .state import MASKED, Prompt, TokenState

_NO_RESULT = sentence("The result is text alone: there is no picture to put back.")


def put_back(
    model: Model,
    prompt: Prompt,
    original: Picture,
    result: Picture | TokenState,
    *,
    mask: Picture | None = None,
    mode: Mode | None = None,
    settings: PutBackSettings | None = None,
) -> tuple[Any, Any]:
    """Lay a result on the picture that it was made from, at that picture's full resolution.

    ``prompt``: the one that the result was made with, which knows where the model's picture lies
    and what it showed. ``original``: the picture that was encoded, in any number of pixels.
    ``result``: tokens, or the picture in any size. ``mask``: white where the result counts, over
    the whole original whatever its size; one that is not painted is no mask. ``mode``: instead
    of that of ``settings``, see :class:`.PutBackSettings`.

    Returns the picture, of mode RGB, RGBA or, for deep greyscale, I;16, and the mask that was used,
    of mode L; where that is 0, each pixel is the original's, bit for bit. They are larger than the
    original where the canvas was extended. An original of pixels, see :func:`.image_of`, comes back
    as the same, an array with a mask (H, W) of uint8, a tensor with one of floats in 0 … 1.

    Raises ``InputError`` for what does not belong together or cannot be read.
    """
    check_model(model, "image_tokenizer", "device")
    check_kind(prompt, Prompt, "prompt", "a prompt")
    check_kind(settings, PutBackSettings | None, "settings", "settings of how to put back")
    choices: Any = {"mask": mask, "mode": mode, "settings": settings}
    if isinstance(original, np.ndarray | Tensor):
        return _put_back_in_kind(model, prompt, original, result, choices)
    image = read_original(original)
    if image.mode in ("L", "LA"):  # an edit may bring colour
        image = image.convert("RGBA" if image.mode == "LA" else "RGB")
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    picture, used = put_back_pixels(model, prompt, pixels, result, **choices)
    whole = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    whole.info = dict(image.info)
    return whole, Image.fromarray(used)


def _put_back_in_kind(
    model: Model,
    prompt: Prompt,
    original: np.ndarray | Tensor,
    result: Picture | TokenState,
    choices: dict[str, Any],
) -> tuple[Any, Any]:
    """Of pixels in any shape that :func:`.image_of` takes."""
    size, levels = image_of(original).size[::-1], levels_of(original)
    batch = () if levels.shape[:2] == size else (1,)
    channels = levels.shape[len(batch) + 2 :]
    pixels = levels.reshape(*size, -1)
    pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
    picture, used = put_back_pixels(model, prompt, pixels, result, **choices)
    picture, used = picture.reshape(batch + used.shape + channels), used.reshape(batch + used.shape)
    if isinstance(original, np.ndarray):
        return picture, used
    mask = torch.from_numpy(used).to(original.device).float() / 255
    return torch.from_numpy(picture).to(original), mask


def put_back_pixels(
    model: Model,
    prompt: Prompt,
    pixels: np.ndarray,
    result: Picture | TokenState,
    *,
    mask: Picture | None = None,
    mode: Mode | None = None,
    settings: PutBackSettings | None = None,
    callback: Callable[[int, int], object] = lambda done, total: None,
    tell: Tell = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The same for ``pixels`` (H, W, C) of the upright original, uint8, uint16 or float in 0 … 1;
    the result has their dtype and channels, the mask is (H, W) uint8. ``callback`` counts the
    strips of the original, ``tell`` is called in what comes before them; both may raise."""
    settings = settings or PutBackSettings()
    if mode is not None:
        settings = replace(settings, mode=mode)
    prompt, start = _of_one_picture(prompt, result)
    assert prompt.placement and prompt.image is not None
    placement = _in_original(prompt.placement[0], (pixels.shape[1], pixels.shape[0]))
    after, undecided, large = _result(model, result, placement)
    seen, before = _view(model, prompt, pixels, placement)
    known = _without_margins(placement)
    before = torch.where(known, before, after)
    painted = None if mask is None else mask_values(mask)[0]
    painted = painted if painted is not None and is_painted(painted) else None
    unit, whole = model.downsample, None
    if settings.mode == "all":
        area = torch.ones(known.shape)
    elif settings.mode == "mask":
        area = _masked_area(painted, start, placement)
        whole = None if painted is None else _full_size(painted, placement.original)
    else:
        area = changed_area(before, after, settings.threshold, unit, tell) * known
        area = dilated(area, settings.grow, tell) * _other_tokens(prompt, result, placement, unit)
        if painted is not None:
            area = area * (_masked_area(painted, start, placement) > 0)
    area = area * ~undecided
    layer_mask = feathered(area, settings.feather, tell) * ~undecided
    views = seen, before, after, area
    shift, gain, new = _filled(*views, settings.fill, known, unit, tell)
    fine = None if large is None else Fine(large, after, new)
    layer = Layer(layer_mask, _reach(placement, settings.feather), shift, gain, fine)
    return blended(pixels, placement, layer, whole, callback)


def _of_one_picture(prompt: Prompt, result: Picture | TokenState) -> tuple[Prompt, Tensor]:
    """The prompt of one sample on the result's canvas, and the image (1, H, W) it started from."""
    if prompt.image is not None and not prompt.initial.image.numel():
        raise InputError(_NO_RESULT)
    if prompt.placement is None or prompt.image is None:
        raise InputError(
            "The prompt was made without a picture, so that there is nothing to put the result "
            "back on: give Encode Instruction the picture."
        )
    alike = len(set(prompt.placement)) == 1 and bool((prompt.image == prompt.image[:1]).all())
    batch = result.batch if isinstance(result, TokenState) else 1
    if batch != 1 or not alike:
        raise InputError(
            f"There are {max(batch, prompt.batch)} results: put back one at a time, with the part "
            "of the prompt that belongs to it, such as prompt[0:1] and tokens[0:1]."
        )
    prompt = prompt[:1]
    start = prompt.initial.image
    if isinstance(result, TokenState):
        if result.grid != prompt.initial.grid and result.placement is None:
            (height, width), (high, wide) = result.grid, prompt.initial.grid
            raise InputError(
                f"The tokens are a picture of {width}x{height} image tokens, the prompt asks for "
                f"{wide}x{high}: use the prompt that the tokens were made with."
            )
        prompt = prompt.starting_from(result)
    return prompt, start


def _in_original(placement: Placement, size: Size) -> Placement:
    """The placement in the original at hand, which may be larger or smaller than the encoded."""
    if size == placement.original:
        return placement
    (width, height), (wide, high) = size, placement.original
    if abs(width * high - height * wide) > max(width + height, wide + high):
        raise InputError(
            f"The original has {width}x{height} pixels, the picture that the prompt was made from "
            f"{wide}x{high}: give that picture, or the same in another size."
        )
    return placement.in_size(size)


def _result(
    model: Model, result: Picture | TokenState, placement: Placement
) -> tuple[Tensor, Tensor, Image.Image | None]:
    """(3, H, W) in 0 … 1 at the size of the model's picture; (H, W) bool, where it is still masked;
    and a picture that has more pixels than the model's, as far as the original has them, too."""
    if isinstance(result, TokenState):
        if not result.image.numel():
            raise InputError(_NO_RESULT)
        pixels, undecided = decode_pixels(model, result), masked_pixels(model, result)
        return pixels[0].permute(2, 0, 1).contiguous(), undecided[0], None
    image, size = load_image(result), placement.size
    small = image
    if image.size != size:
        small = image.resize(size, Image.Resampling.BICUBIC)
    times = math.ceil(min(max(placement.scale), image.width / size[0], image.height / size[1]))
    large = image.resize((times * size[0], times * size[1]), Image.Resampling.BICUBIC)
    nothing = torch.zeros(size[::-1], dtype=torch.bool)
    return _planes(np.asarray(small, np.float32) / 255), nothing, large if times > 1 else None


def _planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _view(
    model: Model, prompt: Prompt, pixels: np.ndarray, placement: Placement
) -> tuple[Tensor, Tensor]:
    """What the model saw, and the same as its image tokenizer gives it back, (3, H, W) each, at the
    size of the result; beyond the input picture its edges are repeated."""
    seen = _planes(original_part(pixels, placement))
    assert prompt.image is not None
    codes = TokenState(torch.zeros(1, 0, dtype=torch.int64), prompt.image)
    inner, (left, top, right, bottom) = placement.input.size, placement.margins
    before = decode_pixels(model, codes).permute(0, 3, 1, 2)
    if (before.shape[3], before.shape[2]) != inner:
        before = F.interpolate(before, inner[::-1], mode="bilinear", antialias=True)
    return seen, F.pad(before, (left, right, top, bottom), mode="replicate")[0]


def _other_tokens(
    prompt: Prompt, result: Picture | TokenState, placement: Placement, unit: int
) -> Tensor | int:
    """(H, W): 1 within half a token of those that differ from the input's; 1 for a picture. The
    decoder shifts all colours a little with any token."""
    if not isinstance(result, TokenState) or prompt.image is None:
        return 1
    left, top, right, bottom = (pixels // unit for pixels in placement.margins)
    height, width = result.grid
    codes = result.image[0, top : height - bottom, left : width - right].cpu()
    if codes.shape != prompt.image.shape[1:]:
        return 1
    other = F.pad((codes != prompt.image[0].cpu()).float(), (left, right, top, bottom))
    return dilated(F.interpolate(other[None, None], placement.size[::-1])[0, 0], unit // 2)


def _without_margins(placement: Placement) -> Tensor:
    """(H, W) bool: the input picture, without what extending the canvas added."""
    left, top, right, bottom = placement.margins
    width, height = placement.size
    known = torch.zeros(height, width, dtype=torch.bool)
    known[top : height - bottom, left : width - right] = True
    return known


def _masked_area(painted: Tensor | None, start: Tensor, placement: Placement) -> Tensor:
    """(H, W) 0 … 1: what is painted on the original, else the image tokens that the prompt
    masks."""
    width, height = placement.size
    if painted is not None:
        across, down = (n / m for n, m in zip(painted.shape[::-1], placement.original, strict=True))
        left, top, right, bottom = placement.box
        box = left * across, top * down, right * across, bottom * down
        return covered(painted[None], (height, width), box)[0]
    masked = start == MASKED
    if masked.all():
        raise InputError(
            "Mode mask needs a mask: give one, or a prompt in which only part of the picture is "
            "masked, or use mode changed."
        )
    return F.interpolate(masked[None].float(), (height, width))[0, 0]


def _full_size(painted: Tensor, size: Size) -> np.ndarray:
    values = Image.fromarray((painted * 255).round().to(torch.uint8).numpy())
    return np.asarray(values.resize(size, Image.Resampling.BILINEAR))


def _filled(
    seen: Tensor,
    before: Tensor,
    after: Tensor,
    area: Tensor,
    fill: str,
    known: Tensor,
    unit: int,
    tell: Tell,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Shift and gain of the layer, see :class:`.Layer`, and (H, W) 0 … 1, how much of it is the
    result itself."""
    area = torch.maximum(area, (~known).float())
    tell()
    replaced = after + seam_correction(seen, after, area, unit)
    if fill == "replace":
        return replaced, None, torch.ones_like(area)
    area = area * known
    gain, shift = affine_change(seen, before, after, area, unit, tell)
    new = (~known).float()
    if fill == "auto":
        new = torch.maximum(new, new_structure(seen, before, after, area, unit, tell))
    return new * replaced + (1 - new) * shift, (1 - new) * gain, new


def _reach(placement: Placement, feather: int) -> Tensor:
    """(H, W): 1, falling to 0 over ``feather`` pixels at edges that lie inside the original."""
    width, height = placement.size
    (left, top), (right, bottom) = placement.box[:2], placement.box[2:]
    wide, high = placement.original
    across, down = placement.scale
    inner = left > across / 2, top > down / 2, right < wide - across / 2, bottom < high - down / 2
    ramps = []
    for pixels, near, far in ((width, inner[0], inner[2]), (height, inner[1], inner[3])):
        place = torch.arange(pixels) + 0.5
        ramp = torch.ones(pixels)
        if feather:
            ramp = torch.minimum(ramp, place / feather) if near else ramp
            ramp = torch.minimum(ramp, (pixels - place) / feather) if far else ramp
        ramps.append(ramp)
    return ramps[1][:, None] * ramps[0]

"""Tokens on disk: one safetensors file that knows which checkpoints its tokens belong to."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError, shortened, shown
from ..files import checked_path, existing_file, replacing, writing
from ..image.placement import Placement
from ..outside import (
    JSON_BYTES,
    MOST_SAMPLES,
    MOST_SIDE,
    MOST_TEXT,
    check_kind,
    check_model,
    checked_text,
    small_json,
)
from ..state import MASKED, TokenState
from .load import Model
from .tensors import open_safetensors

FORMAT = "mmada-parallel tokens 1"
MOST_PIXELS = 2**27
"""Of all pictures of a file."""


def token_identity(model: Model) -> dict[str, str]:
    """What tokens depend on: ``variant``, and checksums of ``vocabulary`` and ``codebook``.
    Checkpoints that were trained further from one another share them. The image tokenizer's weights
    must be loaded."""
    check_model(model, "tokenizer", "image_tokenizer", "layout")
    words = json.dumps(model.tokenizer.get_vocab(), sort_keys=True).encode()
    codes = torch.arange(model.layout.codebook_size, device=model.device).view(1, 1, -1)
    with torch.no_grad():
        vectors = model.image_tokenizer.vectors(codes).float().cpu().contiguous()
    return {
        "variant": model.variant.id,
        "vocabulary": hashlib.sha256(words).hexdigest(),
        "codebook": hashlib.sha256(vectors.numpy().tobytes()).hexdigest(),
    }


def save_tokens(
    path: str | Path,
    state: TokenState,
    model: Model,
    notes: Mapping[str, str] | None = None,
    *,
    new: bool = False,
) -> None:
    """Write ``state`` to ``path``, whole or not at all; the placement stands in the header.
    ``notes``: more metadata for it. ``new``: raise ``AlreadyExists`` in place of replacing a
    file."""
    check_kind(state, TokenState, "state", "tokens")
    check_kind(notes, Mapping | None, "notes", "texts by their names")
    for name, text in (notes or {}).items():
        name = checked_text(name, "The name of a note", sys.maxsize)
        checked_text(text, shortened(name), sys.maxsize)
    tensors = {"text": state.text.cpu().contiguous(), "image": state.image.cpu().contiguous()}
    metadata = {**(notes or {}), "format": FORMAT, **token_identity(model)}
    metadata.pop("placement", None)
    if state.placement:
        metadata["placement"] = json.dumps([asdict(one) for one in state.placement])
    path = checked_path(path, "The tokens")
    with writing(path), replacing(path, new=new) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_tokens(path: str | Path, model: Model) -> TokenState:
    """Read what :func:`save_tokens` wrote. Raises ``InputError`` for a file that is no such file,
    is damaged, or holds tokens of a checkpoint with another variant, vocabulary or codebook than
    ``model``'s."""
    check_model(model, "tokenizer", "image_tokenizer", "layout", "downsample")
    path = existing_file(path, "The tokens", "give a file that Save Tokens wrote")
    try:
        with open_safetensors(path) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} holds no tokens: expected a file that Save Tokens wrote.")
            shapes = {name: file.get_slice(name).get_shape() for name in ("text", "image")}
            check_size(shapes, model, str(path))
            placement = _placement(metadata.get("placement"))
            state = _state(file.get_tensor("text"), file.get_tensor("image"), placement)
    except InputError:
        raise
    except (
        OSError, RuntimeError, MemoryError, SafetensorError, ValueError, TypeError, LookupError,
    ) as error:  # fmt: skip
        raise InputError(f"{path} cannot be read ({error}); save the tokens again.") from None
    check_identity(metadata, token_identity(model), str(path))
    try:
        check_known(model, state.text, state.image, low=MASKED)
        check_placed(state, model)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    return state


def check_identity(metadata: Mapping[str, str], identity: Mapping[str, str], name: str) -> None:
    """Raise ``InputError`` for a header that is not of ``identity``, a model's
    :func:`token_identity`."""
    for part, expected in identity.items():
        if metadata.get(part) != expected:
            raise InputError(
                f"{name} was made with another {part} than this checkpoint's: load the checkpoint "
                "that it was made with."
            )


def check_known(model: Model, text: Tensor | None, codes: Tensor | None, *, low: int = 0) -> None:
    """Raise ``InputError`` for text tokens or image codes that ``model`` does not have. ``low``:
    the lowest, ``MASKED`` for tokens of a state."""
    known = model.transformer.config.embedding_size, model.layout.codebook_size
    for name, tokens, end in zip(("text", "image"), (text, codes), known, strict=True):
        if tokens is None or not tokens.numel():
            continue
        if not low <= int(tokens.min()) <= int(tokens.max()) < end:
            raise InputError(
                f"its {name} has tokens outside 0 to {end - 1}, the checkpoint's: load the one "
                "that it was made with."
            )


def check_words(model: Model, text: Tensor) -> None:
    """Raise ``InputError`` for text tokens that the corrected sampler never chooses, so that they
    have no likelihood to train: the mask's, image codes, and whatever else is no text."""
    choices = model.layout.text_choices
    words = (choices.start <= text) & (text < choices.stop) & (text != model.layout.mask_id)
    if not words.all():
        raise InputError(
            f"its text has the token {int(text[~words][0])}, which is no word: training is on "
            "answers of the corrected preset."
        )


def check_size(shapes: Mapping[str, Sequence[int]], model: Model, name: str) -> None:
    """Raise ``InputError`` for tokens that nothing of this pack makes, before they are read."""
    text, image = shapes["text"], shapes["image"]
    if len(text) != 2 or len(image) != 3 or not text[0] or text[0] != image[0]:
        raise InputError(
            f"{name} is damaged: text {text} and image {image} are not a batch of tokens."
        )
    side = max(image[1:]) * model.downsample
    pixels = image[0] * image[1] * image[2] * model.downsample**2
    if text[0] > MOST_SAMPLES or text[1] > MOST_TEXT or side > MOST_SIDE or pixels > MOST_PIXELS:
        raise InputError(
            f"{name} holds {text[0]} samples of {text[1]} text tokens and {image[2]}x{image[1]} "
            f"image tokens; expected at most {MOST_SAMPLES} samples of {MOST_TEXT} text tokens, "
            f"pictures with sides of {MOST_SIDE} pixels, and {MOST_PIXELS // 10**6} million pixels "
            "in all."
        )


def check_placed(state: TokenState, model: Model) -> None:
    """Raise ``ValueError`` where a picture of ``state`` has another size than its placement, or
    shows nothing of its original."""
    size = state.grid[1] * model.downsample, state.grid[0] * model.downsample
    for placement in state.placement or ():
        left, top, right, bottom = placement.box
        width, height = placement.original
        if placement.size != size:
            raise ValueError(f"its placement has size {placement.size}, its picture {size}")
        if not (left < width and top < height and right > 0 and bottom > 0):
            raise ValueError(f"its placement has box {placement.box}, outside of the original")


def _state(text: Tensor, image: Tensor, placement: Any) -> TokenState:
    """Raises ``ValueError``, which is not yet a sentence about the file, where it is none."""
    try:
        return TokenState(text, image, placement)
    except InputError as error:
        raise ValueError(str(error)) from None


def _placement(written: str | None) -> tuple[Placement, ...] | None:
    """Raises ``ValueError``, ``TypeError`` or ``LookupError`` where it is none."""
    if written is None:
        return None
    placements = small_json(written, JSON_BYTES)
    return placements and tuple(map(_placed, placements))


def _placed(values: Any) -> Placement:
    """The placement of one sample, of finite numbers and whole pixels."""
    numbers = {name: tuple(value) for name, value in dict(values).items()}
    for name, value in numbers.items():
        for number in value:
            whole = name != "box"
            if type(number) is not int and (whole or type(number) is not float):
                raise ValueError(f"its placement has {name} {shown(value)}")
            if not abs(number) < 2**31:
                raise ValueError(f"its placement has {name} {shown(value)}")
    return Placement(**numbers)

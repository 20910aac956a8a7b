"""Pictures of a trajectory: the image at chosen steps, beside its text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image

from ..mmp_core.checkpoint.load import Model
from ..mmp_core.editing import text_pieces
from ..mmp_core.pipeline import decode_image, masked_pixels
from ..mmp_core.state import MASKED, Step, TokenState, Trajectory
from .sheet import Word, alone, beside

_VEIL, _VEIL_STRENGTH = "#808080", 0.6
_HEAT = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])
_HEAT_STRENGTH = 0.65


def spread_steps(trajectory: Trajectory, count: int) -> list[Step]:
    """``count`` recorded steps, evenly spread and the run's end always; all if there are fewer."""
    steps = trajectory.steps
    if len(steps) > count:
        steps = [steps[(i + 1) * len(steps) // count - 1] for i in range(count)]
    return [*steps[:-1], trajectory.end]


def frame_pixels(grid: tuple[int, int], side: int) -> int:
    """About how many pixels a frame of :func:`trajectory_frames` has."""
    height, width = grid
    return 2 * side * (round(side * width / height) if height and width else side)


def trajectory_frames(
    model: Model,
    trajectory: Trajectory,
    steps: Iterable[Step],
    *,
    sample: int = 0,
    side: int = 256,
    heat: bool = False,
) -> list[Image.Image]:
    """One frame per step, all of one size: the picture, and the text beside it or alone.

    The picture is the model's guess, veiled where it is masked; with ``heat`` under a map of the
    confidence in each patch (dark: 0, yellow: 1). Words unmasked since the frame before are marked.
    ``side``: height of the picture in pixels. ``sample``: which of the batch.
    """
    frames, before = [], None
    for step in steps:
        guess, after = step.guess[sample : sample + 1], step.after[sample : sample + 1]
        title = f"step {step.index + 1} of {trajectory.total_steps}"
        words, before = words_of(model, after, before), after
        if not min(after.grid):
            frames.append(alone(side, words, title))
            continue
        if heat:
            picture = heated(decode_image(model, guess)[0], step.image_confidence[sample])
        else:
            picture = veiled_picture(model, guess, after)
        picture = picture.resize((max(1, round(side * picture.width / picture.height)), side))
        frames.append(beside(picture, words, title))
    return frames


def veiled_picture(model: Model, guess: TokenState, state: TokenState) -> Image.Image:
    """The model's guess, under a grey veil where ``state`` is masked. Batches of one."""
    picture = decode_image(model, guess)[0]
    veil = Image.new("RGB", picture.size, _VEIL)
    masked = Image.fromarray(masked_pixels(model, state)[0].numpy())
    return Image.composite(Image.blend(picture, veil, _VEIL_STRENGTH), picture, masked)


def heated(picture: Image.Image, confidence: torch.Tensor) -> Image.Image:
    """``picture`` under a map of ``confidence`` (H, W), 0 … 1: dark violet to yellow."""
    place = confidence.float().cpu().clamp(0, 1).numpy() * (len(_HEAT) - 1)
    levels = [np.interp(place, range(len(_HEAT)), channel) for channel in _HEAT.T]
    colours = Image.fromarray(np.stack(levels, axis=-1).round().astype(np.uint8))
    colours = colours.resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture, colours, _HEAT_STRENGTH)


def words_of(model: Model, state: TokenState, before: TokenState | None = None) -> list[Word]:
    """The words of a batch of one; new are those that were masked in ``before``."""
    ids = state.text[0].tolist()
    earlier = ids if before is None else before.text[0].tolist()
    words: list[Word] = []
    for piece, now, then in zip(text_pieces(model, state)[0], ids, earlier, strict=True):
        word = Word(piece.strip(), now == MASKED, now != then)
        if piece[:1].isspace() or not words:
            words.append(word)
        elif piece:
            last = words[-1]
            joined = last.text + word.text
            words[-1] = Word(joined, last.masked or word.masked, last.new or word.new)
    return [word for word in words if word.text]

"""What a model in training answers now: pairs of text and picture, and a picture of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from ..mmp_core.checkpoint.load import Model
from ..mmp_core.sampler.settings import SamplerSettings
from ..views.sheet import Word, beside, contact_sheet
from .cases import Case, Pair
from .pararl.rollout import Group, alike, final_pairs, roll_out

SAMPLER = SamplerSettings(text_steps=32, image_steps=16, joint_guidance=0.0)


def answers(
    model: Model,
    cases: Sequence[Case],
    *,
    seed: int = 0,
    sampler: SamplerSettings = SAMPLER,
    micro_batch: int = 1,
    progress: Callable[[int, int], Any] | None = None,
) -> list[Pair]:
    """One final pair per case, sampled as ``sampler`` says, which is in few steps by default: a
    look, not a measurement.

    ``progress(done, total)`` may raise to interrupt.
    """
    groups = [Group.of(number, case, 1, f"{seed} look") for number, case in enumerate(cases)]
    found: list[Pair] = []
    for members in alike(groups):
        rollouts = roll_out(
            model,
            members,
            replace(sampler, seed=seed),
            drawn=1,
            micro_batch=micro_batch,
            progress=progress,
        )
        found += final_pairs(model, rollouts, micro_batch=micro_batch)
    return found


def pairs_sheet(pairs: Sequence[Pair], *, columns: int = 2, side: int = 128) -> Image.Image:
    """One frame per pair: the picture beside its text, under the instruction's beginning.

    ``side``: height of each picture in pixels.
    """
    frames = []
    for pair in pairs:
        picture = pair.picture.resize(
            (round(side * pair.picture.width / pair.picture.height), side)
        )
        frames.append(beside(picture, [Word(w) for w in pair.text.split()], _short(pair)))
    widest = max(frame.width for frame in frames)
    return contact_sheet([_widened(frame, widest) for frame in frames], columns)


def _short(pair: Pair) -> str:
    told = pair.case.instruction
    return told if len(told) <= _LONGEST_TITLE else f"{told[: _LONGEST_TITLE - 1]}…"


def _widened(frame: Image.Image, width: int) -> Image.Image:
    wide = Image.new("RGB", (width, frame.height), "white")
    wide.paste(frame)
    return wide


_LONGEST_TITLE = 24

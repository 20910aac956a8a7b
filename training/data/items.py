"""One item of a dataset: an instruction and pictures that stay where they are stored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol, TypeVar

from PIL import Image

from ...mmp_core.errors import InputError, sentence
from ...mmp_core.image.files import opened_picture
from ...mmp_core.image.modes import orientation_of
from ...mmp_core.image.placement import Size
from ...mmp_core.outside import checked_text

MOST_ITEMS = 1_000_000
"""Of a dataset, of which each takes about half a kilobyte."""
SMALLEST_SIDE = 32
LONGEST_STRIP = 8
"""Sides of a picture at most so many times apart: variant A crops to 4:1, so that of a longer strip
less than half would be seen."""
SAME_RATIO = 0.01
"""How far the aspect ratios of a picture and its target may differ: they are laid on each other."""

EVERY = 1000
"""Items between two calls of a callback that counts them, where none takes long."""

_TURNED_FROM = 5
"""EXIF orientations from here on swap width and height."""


Counted = Callable[[int, int], object]
"""Called with how many items of how many are done; may raise."""
Each = TypeVar("Each", covariant=True)


class Countable(Sized, Protocol[Each]):
    def __iter__(self) -> Iterator[Each]: ...


def counted(items: Countable[Each], callback: Counted | None) -> Iterator[Each]:
    """``items``; ``callback`` is called before every :data:`EVERY`-th."""
    for done, item in enumerate(items):
        if callback and done % EVERY == EVERY - 1:
            callback(done, len(items))
        yield item


@dataclass(frozen=True)
class Picture:
    """A picture that is read when it is needed.

    ``digest``: SHA-256 of what is stored, in hex. ``size``: (width, height) upright. ``read``:
    gives it as upright RGB; raises ``InputError`` where that is no longer possible.
    """

    digest: str
    size: Size
    read: Callable[[], Image.Image]


@dataclass(frozen=True)
class Item:
    """One thing to train on.

    ``name``: how messages call it. ``think``: the reasoning text that SFT teaches. ``image``:
    what the instruction edits, ``None`` to generate. ``target``: the wanted picture, for SFT.
    ``facts``: what else a reward needs. ``mask``: white where the target matters.
    ``outside_weight``: what image tokens count that do not matter, see :class:`DataSettings`.
    ``made_from``: the origin of the item that this one is another form of.
    """

    name: str
    instruction: str
    think: str | None = None
    image: Picture | None = None
    target: Picture | None = None
    facts: Any = None
    mask: Picture | None = None
    outside_weight: float = 1.0
    made_from: str = ""

    @property
    def origin(self) -> str:
        """Equal for items of the same pictures, in hex; without a target, of one instruction."""
        if self.made_from:
            return self.made_from
        words = self.instruction if self.target is None else ""
        digests = [picture and picture.digest for picture in (self.image, self.target)]
        return hashlib.sha256(json.dumps([words, digests]).encode()).hexdigest()

    def __post_init__(self) -> None:
        checked_text(self.instruction, sentence("its instruction"))
        checked_text(self.think or "", sentence("its reasoning"))
        for name, other in (
            (sentence("its picture"), self.image),
            (sentence("its mask"), self.mask),
        ):
            if other is not None and self.target is not None:
                _check_shapes(name, other.size, self.target.size)


def _check_shapes(name: str, size: Size, target: Size) -> None:
    ratio = size[0] * target[1] / (size[1] * target[0])
    if not 1 - SAME_RATIO <= ratio <= 1 + SAME_RATIO:
        raise InputError(
            f"{name} is {size[0]}x{size[1]} and its target {target[0]}x{target[1]}: "
            "make both of one shape, since the model sees them laid on each other."
        )


@dataclass(frozen=True)
class UnreadItem:
    """``read`` reads and checks the item; raises ``InputError`` that says why it cannot be used,
    without its name."""

    name: str
    read: Callable[[], Item]


def checked_picture(name: str, content: bytes, read: Callable[[], Image.Image]) -> Picture:
    """The picture stored as ``content``, which ``read`` gives.

    All of it is decoded once, JPEGs at an eighth of their size. Raises ``InputError`` for what
    cannot be decoded, is too small or too long a strip.
    """
    with opened_picture(BytesIO(content), name) as opened:
        width, height = opened.size
        opened.draft("RGB", (1, 1))
        opened.load()
        if orientation_of(opened) >= _TURNED_FROM:
            width, height = height, width
    if min(width, height) < SMALLEST_SIDE:
        raise InputError(
            f"{name} is {width}x{height}: expected sides of at least {SMALLEST_SIDE} pixels."
        )
    if max(width, height) > LONGEST_STRIP * min(width, height):
        raise InputError(
            f"{name} is {width}x{height}: expected sides at most {LONGEST_STRIP} times apart; "
            "crop it."
        )
    return Picture(hashlib.sha256(content).hexdigest(), (width, height), read)


def wanted_text(text: str | None, missing: str) -> str:
    """``text``, stripped. Raises ``InputError`` with the message ``missing`` for an empty one."""
    if not text or not text.strip():
        raise InputError(missing)
    return text.strip()


def natural_order(name: str) -> tuple:
    """A sort key that puts 2 before 10 and ignores case."""
    parts = re.split(r"(\d+)", name)
    return [int(p) if i % 2 else p.casefold() for i, p in enumerate(parts)], name

"""What the worlds of the demo have in common: scenes that are drawn and coded, tasks that judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from PIL import Image


class AnyScene(Protocol):
    """What a task shows."""

    def codes(self) -> list[list[int]]:
        """Codebook index of each patch."""
        ...

    def picture(self) -> Image.Image: ...

    def large(self, side: int) -> Image.Image:
        """The picture, ``side`` pixels wide."""
        ...


@dataclass(frozen=True)
class Verdict:
    """``picture``: all as the task wants it. ``sentence``: its words, applied to the input, give a
    wanted scene. ``agree``: its words, applied to the input, give the picture. ``kept``: share of
    what the task leaves alone that is as before (1 for generation). Where a task has several right
    results, the picture is compared with the one most like it. ``spoilt``: in words, what changed
    that should not have, where a world says it.
    """

    picture: bool
    sentence: bool
    agree: bool
    kept: float
    spoilt: tuple[str, ...] = ()


S = TypeVar("S", bound=AnyScene)


class AnyTask(ABC, Generic[S]):
    """One held-out or training case. ``before`` is ``None`` for generation from words alone.
    ``text_length``: tokens of the longest sentence of its world."""

    text_length: ClassVar[int]

    kind: str
    instruction: str
    before: S | None
    sentence: str
    after: S

    @property
    def source(self) -> S:
        """The scene to edit. Raises ``ValueError`` for generation."""
        if self.before is None:
            raise ValueError(f"{self.instruction!r} edits no scene.")
        return self.before

    @classmethod
    @abstractmethod
    def kinds(cls) -> tuple[str, ...]:
        """All kinds of task of its world."""

    @abstractmethod
    def check(self, picture: Image.Image, sentence: str) -> Verdict:
        """Judge one answer: its picture (any size) and its sentence."""

    @abstractmethod
    def truths(self, picture: Image.Image) -> Iterable[str]:
        """What its world can truly say about how ``picture`` differs from the scene to edit, or,
        for generation, about what it shows. Nothing where no single edit leads to it."""

    @abstractmethod
    def shown_by(self, picture: Image.Image) -> bool:
        """Whether ``picture`` shows all of the result as it should be."""

"""A task of the toy world, and what each kind of task has to say about itself."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from .scenes import Scene
from .worlds import AnyTask, Verdict


@dataclass(frozen=True)
class Task(AnyTask[Scene]):
    """One held-out or training case. ``before`` is ``None`` for generation from words alone.

    ``others``: results that are as right as ``after``, where the instruction leaves it open.
    """

    text_length: ClassVar[int] = 21

    kind: str
    instruction: str
    before: Scene | None
    sentence: str
    after: Scene
    others: tuple[Scene, ...] = ()

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        from .kinds import KINDS

        return tuple(KINDS)

    def check(self, picture: Image.Image, sentence: str) -> Verdict:
        from .checker import check

        return check(self, picture, sentence)

    def truths(self, picture: Image.Image) -> Iterable[str]:
        from .reward import sentences

        return sentences(self, picture)

    def shown_by(self, picture: Image.Image) -> bool:
        from .checker import parse_codes

        return bool((parse_codes(picture, self.after.grid) == self.after.codes()).all())


class Kind(ABC):
    """A kind of task: takes a scene and gives tasks with exactly one right result each.

    ``form``: regular expression of its sentences, without the full stop; ``apply`` takes its
    groups. ``edits``: whether there is a scene to edit; else only its grid is used. ``words``: what
    is said beside objects, colours and places.
    """

    name: ClassVar[str]
    form: ClassVar[str]
    words: ClassVar[str]
    edits: ClassVar[bool] = True

    @abstractmethod
    def make(self, rng: random.Random, scene: Scene) -> Task:
        """A task on ``scene``, drawn with ``rng``."""

    @abstractmethod
    def apply(self, scene: Scene, *groups: str) -> Scene | None:
        """The scene after a sentence of this kind; ``None`` where it makes no sense there."""

    @abstractmethod
    def sentences(self, before: Scene, after: Scene) -> Iterator[str]:
        """All sentences of this kind that lead from ``before`` to ``after``."""

    def task(self, scene: Scene, instruction: str, sentence: str, after: Scene) -> Task:
        return Task(self.name, instruction, scene if self.edits else None, f"{sentence} .", after)

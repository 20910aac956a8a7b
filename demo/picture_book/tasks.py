"""Tasks of the picture book by number, the same on every machine, and all that can be said in it.

Some combinations of an edit and what it is done to are held out: no task that is trained on has
one, every task that a checkpoint is judged by has.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from ..worlds import AnyTask, Verdict
from . import judge
from .edits import EDITS, WORDING, Edit
from .scenes import COLOURS, COLUMNS, GROUNDS, KINDS, PLAIN, SIZES, SKY, TIMES, Scene, Thing
from .words import (
    AUTUMN,
    BECOMES,
    BY,
    COLOURED,
    EXTREMES,
    FACTS,
    FIXED,
    OVER,
    SAYINGS,
    a,
    drawn,
    in_order,
    listed,
    on_the,
    seen,
    staying,
)

DRAW = "draw"
"""The kind of task that makes a picture from words alone."""
MOST_THINGS = 4
MOST_DRAWN = 2
HELD_OUT_OF = 8
"""One combination in so many is held out."""


@dataclass(frozen=True)
class Task(AnyTask[Scene]):
    """``before`` is ``None`` to draw from words alone."""

    text_length: ClassVar[int] = 52

    kind: str
    instruction: str
    before: Scene | None
    sentence: str
    after: Scene

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        return (*EDITS, DRAW)

    def check(self, picture: Image.Image, sentence: str) -> Verdict:
        """The verdict says what was spoilt."""
        shown = judge.read(picture)
        said = " ".join(judge.spaced(sentence))
        scene = shown.scene
        truths = set() if scene is None else set(sentences(self.before, scene))
        return Verdict(
            picture=scene == self.after,
            sentence=said in set(sentences(self.before, self.after)),
            agree=said in truths,
            kept=shown.kept(self.before, self.after),
            spoilt=tuple(shown.spoilt(self.before, self.after)),
        )

    def truths(self, picture: Image.Image) -> Iterator[str]:
        scene = judge.read(picture).scene
        return iter(()) if scene is None else sentences(self.before, scene)

    def shown_by(self, picture: Image.Image) -> bool:
        return judge.read(picture).scene == self.after


def random_scene(rng: random.Random, most: int = MOST_THINGS) -> Scene:
    """A scene of one to ``most`` things."""
    scene = Scene(rng.choice(TIMES), rng.choice(GROUNDS))
    for kind in rng.sample(KINDS, rng.randint(1, most)):
        colour = "" if kind in PLAIN else rng.choice(COLOURS)
        slot = rng.choice(scene.empty_slots("sky" if kind in SKY else "ground"))
        scene = scene.having({slot: Thing(kind, colour, rng.choice(SIZES))})
    return scene


def task(seed: int, *, held_out: bool = False, kinds: Sequence[str] | None = None) -> Task:
    """The task numbered ``seed``, whose combination is held out or is not."""
    rng = random.Random(f"picture book {seed}")
    kind = rng.choice(kinds or (*EDITS, DRAW))
    while True:
        made = _drawing(rng) if kind == DRAW else _edit(rng, kind)
        if made and is_held_out(made) == held_out:
            return made


def _edit(rng: random.Random, kind: str) -> Task | None:
    scene = random_scene(rng)
    edits = list(EDITS[kind].of(scene))
    if not edits:
        return None
    edit = rng.choice(edits)
    instruction, reason = rng.choice(list(edit.asked(scene)))
    return Task(kind, instruction, scene, sentence(scene, edit, reason), edit.apply(scene))


def _drawing(rng: random.Random) -> Task:
    scene = random_scene(rng, MOST_DRAWN)
    things = [f"{a(thing, scene)} {on_the(slot.column)}" for slot, thing in in_order(scene)]
    verb = rng.choice((DRAW, "paint"))
    instruction = f"{verb} {listed(things)} {OVER[scene.ground]} {BY[scene.time]}"
    return Task(DRAW, instruction, None, drawn(scene), scene)


def sentence(before: Scene, edit: Edit, reason: str = "") -> str:
    """What is seen, what follows and why, what stays."""
    clause = edit.clause(before)
    follows = f"{reason} , so {clause}" if reason else clause
    return f"{seen(before)} {follows} . {staying(before, edit.apply(before))}"


def sentences(before: Scene | None, after: Scene) -> Iterator[str]:
    """All that the book can truly say of ``after``: how one edit made it of ``before``, with each
    reason that holds, or what was drawn from nothing."""
    if before is None:
        yield drawn(after)
        return
    for edit in edits_between(before, after):
        for reason in sorted({"", *(reason for _, reason in edit.asked(before))}):
            yield sentence(before, edit, reason)


def edits_between(before: Scene, after: Scene) -> Iterator[Edit]:
    """All single edits that make ``after`` of ``before``."""
    changed = sum(x != y for x, y in zip(before.things, after.things, strict=True))
    if before != after and changed <= 2:
        for kind in EDITS.values():
            yield from (edit for edit in kind.of(before) if edit.apply(before) == after)


def is_held_out(made: Task) -> bool:
    return zlib.crc32(combination(made).encode()) % HELD_OUT_OF == 0


def combination(made: Task) -> str:
    """The kind of task and what it is done to: contents before and after, of the landscape alone
    where that changes; neither sizes nor columns, which would leave each combination rare."""
    before, after = made.before, made.after
    if before is None:
        return f"{made.kind}: {_contents(after.things)} {after.ground} {after.time}"
    if before.things == after.things:
        scenes = (f"{scene.ground} {scene.time}" for scene in (before, after))
        return f"{made.kind}: {' to '.join(scenes)}"
    pairs = [pair for pair in zip(before.things, after.things, strict=True) if pair[0] != pair[1]]
    return f"{made.kind}: " + " to ".join(_contents(side) for side in zip(*pairs, strict=True))


def _contents(things: Sequence[Thing | None]) -> str:
    return " ".join(sorted(f"{thing.colour} {thing.kind}" for thing in things if thing))


def words() -> list[str]:
    """Every word that instructions and sentences use, sorted: the tokenizer's vocabulary."""
    texts = [*FACTS.values(), AUTUMN, *BECOMES.values(), *OVER.values(), *BY.values()]
    spoken = [*KINDS, "moon", *COLOURS, *SIZES, *EXTREMES.values(), *COLUMNS, *GROUNDS, *TIMES]
    spoken += [text for pair in texts for text in ([pair] if isinstance(pair, str) else pair)]
    spoken += [text for things in COLOURED.values() for text in things]
    spoken += [text for sayings in SAYINGS.values() for pair in sayings.items() for text in pair]
    spoken += [re.sub(r"{\w+}", "", WORDING), FIXED, DRAW]
    return sorted(set(" ".join(spoken).split()))

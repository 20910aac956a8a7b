"""The edits of the book: what each does to a scene, how it is asked for, and what is said about it.

An edit knows nothing of sentences but its own clause; the whole sentence says what is seen, the
reason if the instruction needs one, the clause, and what stays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from .scenes import (
    COLOURS,
    COLUMNS,
    CONTENTS,
    GROUNDS,
    SLOTS,
    TIMES,
    Scene,
    Slot,
    Thing,
)
from .words import (
    AUTUMN,
    BECOMES,
    FACTS,
    SAYINGS,
    a,
    colour_names,
    fact,
    kind_name,
    names,
    on_the,
    other_size,
    the,
)

Asked = tuple[str, str]
"""An instruction, and the reason that the answer gives, or ""."""


class Edit(ABC):
    """One change of a scene. ``name``: the kind of task."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def of(cls, scene: Scene) -> Iterator[Edit]:
        """All edits of this kind that ``scene`` allows."""

    @abstractmethod
    def apply(self, scene: Scene) -> Scene: ...

    @abstractmethod
    def clause(self, scene: Scene) -> str:
        """What happens to ``scene``, in words that tell it from every other edit."""

    @abstractmethod
    def asked(self, scene: Scene) -> Iterator[Asked]:
        """All instructions for it."""


@dataclass(frozen=True)
class Recolour(Edit):
    slot: Slot
    colour: str
    name = "recolour"

    @classmethod
    def of(cls, scene: Scene) -> Iterator[Edit]:
        for slot, thing in scene.placed().items():
            if thing.colour:
                yield from (cls(slot, colour) for colour in COLOURS if colour != thing.colour)

    def apply(self, scene: Scene) -> Scene:
        return scene.having({self.slot: replace(_thing(scene, self.slot), colour=self.colour)})

    def clause(self, scene: Scene) -> str:
        return f"{_the(scene, self.slot)} becomes {self.colour}"

    def asked(self, scene: Scene) -> Iterator[Asked]:
        thing = _thing(scene, self.slot)
        for name, reason in names(scene, self.slot):
            yield from _phrased(_PAINT, reason, name=name, colour=self.colour)
        for colour, reason in colour_names(self.colour, scene, thing.kind):
            yield from _phrased(_PAINT, reason, name=_the(scene, self.slot), colour=colour)
        if thing.kind == "tree" and self.colour == "orange":
            yield AUTUMN


@dataclass(frozen=True)
class Resize(Edit):
    slot: Slot
    name = "resize"

    @classmethod
    def of(cls, scene: Scene) -> Iterator[Edit]:
        return map(cls, scene.placed())

    def apply(self, scene: Scene) -> Scene:
        thing = _thing(scene, self.slot)
        return scene.having({self.slot: replace(thing, size=other_size(thing.size))})

    def clause(self, scene: Scene) -> str:
        return f"{_the(scene, self.slot)} becomes {other_size(_thing(scene, self.slot).size)}"

    def asked(self, scene: Scene) -> Iterator[Asked]:
        forms = _RESIZE[other_size(_thing(scene, self.slot).size)]
        for name, reason in names(scene, self.slot):
            yield from _phrased(forms, reason, name=name)


@dataclass(frozen=True)
class Remove(Edit):
    slot: Slot
    name = "remove"

    @classmethod
    def of(cls, scene: Scene) -> Iterator[Edit]:
        return map(cls, scene.placed())

    def apply(self, scene: Scene) -> Scene:
        return scene.having({self.slot: None})

    def clause(self, scene: Scene) -> str:
        return f"{_the(scene, self.slot)} goes away"

    def asked(self, scene: Scene) -> Iterator[Asked]:
        for name, reason in names(scene, self.slot):
            yield from _phrased(_REMOVE, reason, name=name)


@dataclass(frozen=True)
class Add(Edit):
    slot: Slot
    thing: Thing
    name = "add"

    @classmethod
    def of(cls, scene: Scene) -> Iterator[Edit]:
        if len(scene.placed()) < 4:
            there = {thing.kind for thing in scene.placed().values()}
            for layer, things in CONTENTS.items():
                for slot in scene.empty_slots(layer):
                    yield from (cls(slot, thing) for thing in things if thing.kind not in there)

    def apply(self, scene: Scene) -> Scene:
        return scene.having({self.slot: self.thing})

    def clause(self, scene: Scene) -> str:
        return f"{a(self.thing, scene)} appears {on_the(self.slot.column)}"

    def asked(self, scene: Scene) -> Iterator[Asked]:
        where = on_the(self.slot.column)
        yield from _phrased(_ADD, "", thing=a(self.thing, scene), where=where)
        thing, reason = _paraphrased(self.thing, scene, size=True)
        yield from _phrased(_ADD, reason, thing=thing, where=where)


@dataclass(frozen=True)
class Replace(Edit):
    """By another kind of the same size."""

    slot: Slot
    thing: Thing
    name = "replace"

    @classmethod
    def of(cls, scene: Scene) -> Iterator[Edit]:
        there = {thing.kind for thing in scene.placed().values()}
        for slot, old in scene.placed().items():
            for thing in CONTENTS[slot.layer]:
                if thing.kind not in there and thing.size == old.size:
                    yield cls(slot, thing)

    def apply(self, scene: Scene) -> Scene:
        return scene.having({self.slot: self.thing})

    def clause(self, scene: Scene) -> str:
        return f"{_the(scene, self.slot)} becomes {a(self.thing, scene, size=False)}"

    def asked(self, scene: Scene) -> Iterator[Asked]:
        new = a(self.thing, scene, size=False)
        for name, reason in names(scene, self.slot):
            yield from _phrased(_REPLACE, reason, name=name, thing=new)
        thing, reason = _paraphrased(self.thing, scene, size=False)
        yield from _phrased(_REPLACE, reason, name=_the(scene, self.slot), thing=thing)


@dataclass(frozen=True)
class Move(Edit):
    slot: Slot
    column: int
    name = "move"

    @classmethod
    def of(cls, scene: Scene) -> Iterator[Edit]:
        for slot in scene.placed():
            yield from (cls(slot, to.column) for to in scene.empty_slots(slot.layer))

    def apply(self, scene: Scene) -> Scene:
        to = Slot(self.slot.layer, self.column)
        return scene.having({self.slot: None, to: scene.at(self.slot)})

    def clause(self, scene: Scene) -> str:
        return f"{_the(scene, self.slot)} moves to the {COLUMNS[self.column]}"

    def asked(self, scene: Scene) -> Iterator[Asked]:
        for name, reason in names(scene, self.slot):
            yield from _phrased(_MOVE, reason, name=name, column=COLUMNS[self.column])


@dataclass(frozen=True)
class Swap(Edit):
    """Of two things on the ground, or two in the sky; ``slot`` is the left one."""

    slot: Slot
    other: Slot
    name = "swap"

    @classmethod
    def of(cls, scene: Scene) -> Iterator[Edit]:
        placed = [slot for slot in SLOTS if scene.at(slot)]
        for slot in placed:
            for other in placed:
                if slot.layer == other.layer and slot.column < other.column:
                    yield cls(slot, other)

    def apply(self, scene: Scene) -> Scene:
        return scene.having({self.slot: scene.at(self.other), self.other: scene.at(self.slot)})

    def clause(self, scene: Scene) -> str:
        return f"{_the(scene, self.slot)} and {_the(scene, self.other)} change places"

    def asked(self, scene: Scene) -> Iterator[Asked]:
        left, right = _the(scene, self.slot), _the(scene, self.other)
        yield from _phrased(_SWAP, "", left=left, right=right)
        yield from _phrased(_SWAP, "", left=right, right=left)


@dataclass(frozen=True)
class Light(Edit):
    """Another time of day."""

    time: str
    name = "time"

    @classmethod
    def of(cls, scene: Scene) -> Iterator[Edit]:
        return (cls(time) for time in TIMES if time != scene.time)

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, time=self.time)

    def clause(self, scene: Scene) -> str:
        old, new = (kind_name("sun", each) for each in (scene, self.apply(scene)))
        turns = f" and the {old} becomes the {new}" if scene.slot_of("sun") and old != new else ""
        return f"it becomes {self.time}{turns}"

    def asked(self, scene: Scene) -> Iterator[Asked]:
        yield from _phrased(_TIME, "", time=self.time)
        yield from SAYINGS[self.time].items()


@dataclass(frozen=True)
class Ground(Edit):
    ground: str
    name = "ground"

    @classmethod
    def of(cls, scene: Scene) -> Iterator[Edit]:
        return (cls(ground) for ground in GROUNDS if ground != scene.ground)

    def apply(self, scene: Scene) -> Scene:
        return replace(scene, ground=self.ground)

    def clause(self, scene: Scene) -> str:
        return f"the {scene.ground} becomes {BECOMES[self.ground]}"

    def asked(self, scene: Scene) -> Iterator[Asked]:
        forms = [form for form in _GROUND if scene.ground != "sea" or "ground" not in form]
        yield from _phrased(forms, "", old=f"the {scene.ground}", new=BECOMES[self.ground])
        yield from SAYINGS[self.ground].items()


EDITS: dict[str, type[Edit]] = {
    edit.name: edit for edit in (Recolour, Resize, Remove, Add, Replace, Move, Swap, Light, Ground)
}
"""In the order that seeds choose from."""

_PAINT = ("make {name} {colour}", "paint {name} {colour}", "please colour {name} {colour}")
_RESIZE = {
    "big": ("make {name} big", "make {name} bigger", "let {name} grow"),
    "small": ("make {name} small", "make {name} smaller", "let {name} shrink"),
}
_REMOVE = ("remove {name}", "take {name} away", "let {name} go away")
_ADD = ("add {thing} {where}", "draw {thing} {where}", "put {thing} {where}")
_REPLACE = ("replace {name} with {thing}", "turn {name} into {thing}", "change {name} into {thing}")
_MOVE = (
    "move {name} to the {column}",
    "put {name} on the {column}",
    "let {name} go to the {column}",
)
_SWAP = ("swap {left} and {right}", "let {left} and {right} change places")
_TIME = ("make it {time}", "now it is {time}", "let it be {time}")
_GROUND = ("make the ground {new}", "turn {old} into {new}", "change {old} into {new}")


WORDING = " ".join(
    form
    for forms in (_PAINT, *_RESIZE.values(), _REMOVE, _ADD, _REPLACE, _MOVE, _SWAP, _TIME, _GROUND)
    for form in (*forms, "the thing something and becomes goes away appears moves change places it")
)
"""All that instructions and clauses are made of, besides names."""


def _phrased(forms: Sequence[str], reason: str, **parts: str) -> Iterator[Asked]:
    yield from ((form.format(**parts), reason) for form in forms)


def _paraphrased(thing: Thing, scene: Scene, *, size: bool) -> Asked:
    """ "something small and red to sail in", and the reason why it is a boat."""
    looks = " and ".join(word for word in (thing.size if size else "", thing.colour) if word)
    words = " ".join(part for part in ("something", looks, FACTS[thing.kind][0]) if part)
    return words, fact(thing.kind, scene)


def _thing(scene: Scene, slot: Slot) -> Thing:
    thing = scene.at(slot)
    if thing is None:
        raise ValueError(f"There is nothing in {slot}.")
    return thing


def _the(scene: Scene, slot: Slot) -> str:
    return the(_thing(scene, slot).kind, scene)

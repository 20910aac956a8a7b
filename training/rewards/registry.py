"""Rewards by name, for nodes and command line alike. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...mmp_core.errors import InputError
from ...mmp_core.outside import checked_text

if TYPE_CHECKING:
    from ..cases import Reward
    from ..data.dataset import EditDataset
    from .clip import ClipScorer

ClipLoader = Callable[[str], "ClipScorer"]
"""Gives the CLIP of a name or folder; the caller knows how its memory is managed."""


@dataclass(frozen=True)
class RewardKind:
    """A reward that can be asked for by name.

    ``name``: on the command line and in saved runs. ``label``: in the node's widget, whose values
    are saved with workflows. ``help``: what it rewards, to follow the name in a list. ``make``:
    builds it from what stands after the name and a colon. ``place``: what that is called, such as
    FOLDER of a CLIP; None if there is nothing. ``option``: the same where it may be left out.
    ``alone``: whether training on nothing else makes sense. ``check``: raises ``InputError`` for a
    dataset that it cannot judge.
    """

    name: str
    label: str
    help: str
    make: Callable[[str, ClipLoader], Reward]
    place: str | None = None
    option: str | None = None
    alone: bool = True
    check: Callable[[EditDataset], None] = lambda dataset: None

    @property
    def usage(self) -> str:
        if self.option:
            return f"{self.name}[:{self.option}]"
        return f"{self.name}:{self.place}" if self.place else self.name


def _clip_reward(place: str, load_clip: ClipLoader) -> Reward:
    from .clip import ClipReward

    if not place:
        raise InputError("The reward clip needs its folder: clip:FOLDER, or clip:demo.")
    return ClipReward(load_clip(place))


CLIP = RewardKind(
    "clip",
    "clip",
    "how well text and picture agree by the CLIP in FOLDER (open_clip's format; clip:demo knows "
    "the toy world)",
    _clip_reward,
    place="FOLDER",
)


def _preference_reward(place: str, load_clip: ClipLoader) -> Reward:
    from .clip import PreferenceReward

    if not place:
        raise InputError("The reward preference needs the model's folder: preference:FOLDER.")
    return PreferenceReward(load_clip(place))


PREFERENCE = RewardKind(
    "preference",
    "preference",
    "how well people would like the picture for the instruction (of an edit: for the answer's "
    "text) by a model of the CLIP kind in FOLDER, such as PickScore or HPS",
    _preference_reward,
    place="FOLDER",
)


def _consistency(place: str, load_clip: ClipLoader) -> Reward:
    from .consistency import SHARE, ConsistencyReward

    try:
        return ConsistencyReward(float(place) if place else SHARE)
    except ValueError:
        raise InputError(
            f"consistency:{place} is no share of the picture: give 0 to 0.99."
        ) from None


def _check_edits(dataset: EditDataset) -> None:
    if not any(item.image for item in dataset):
        raise InputError(
            f"{dataset.place} has no picture to edit, so that the reward consistency has nothing "
            "to compare with: leave it out."
        )


CONSISTENCY = RewardKind(
    "consistency",
    "consistency",
    "how far an edit leaves alone what it should: the picture outside the item's mask or, without "
    "one, where input and target are alike; without either, all but SHARE of the picture (0.25); "
    "add it to others",
    _consistency,
    option="SHARE",
    alone=False,
    check=_check_edits,
)


def _votes(place: str, load_clip: ClipLoader) -> Reward:
    from ..pararl.votes import Votes

    return Votes()


VOTES = RewardKind(
    "votes",
    "your votes",
    "you mark the best answers of every step: the run writes them into its folder, under votes, "
    "and waits",
    _votes,
)
REWARDS = {kind.name: kind for kind in (CLIP, PREFERENCE, CONSISTENCY, VOTES)}


def register(kind: RewardKind) -> None:
    REWARDS[kind.name] = kind


def widget_values(clips: Iterable[str]) -> list[str]:
    """What a node offers, ``clips`` being the names of the CLIPs that there are."""
    alone = [kind.label for kind in REWARDS.values() if kind.alone and not kind.place]
    return [*alone, *(f"{kind.label}: {clip}" for kind in _of_clips() for clip in clips)]


def from_widget(value: str) -> tuple[RewardKind, str]:
    """The reward that a widget's value names, and its place. Raises ``InputError``."""
    for kind in REWARDS.values():
        if not kind.place and kind.alone and value == kind.label:
            return kind, ""
    for kind in _of_clips():
        if value.startswith(f"{kind.label}: "):
            return kind, value.removeprefix(f"{kind.label}: ")
    raise InputError(f"There is no reward {value!r}: choose another.")


def specs_in(text: str) -> list[str]:
    """The specs of :func:`weighted_reward` in what a person writes: between commas or in lines of
    their own, with or without spaces around colon and equals sign."""
    parts = [part.strip() for part in text.replace("\n", ",").split(",")]
    specs = []
    for part in filter(None, parts):
        named, mark, weight = part.rpartition("=")
        name, colon, place = (named if mark else part).partition(":")
        specs.append(f"{name.strip()}{colon}{place.strip()}{mark}{weight.strip() if mark else ''}")
    return specs


def place_of(spec: str) -> tuple[str, str, float]:
    """Name, place and weight of a spec of :func:`weighted_reward`."""
    named, weight = _split_weight(spec)
    name, _, place = named.partition(":")
    return name, place, weight


def _of_clips() -> Iterator[RewardKind]:
    return (kind for kind in REWARDS.values() if kind.place)


def weighted_reward(specs: Sequence[str], load_clip: ClipLoader, dataset: EditDataset) -> Reward:
    """The weighted sum of rewards named as on a command line: ``clip:FOLDER``, ``checker=0.5``.

    After the name, a colon and what the reward is made of, if anything; then ``=`` and its weight,
    1 by default; or ``votes`` alone. Raises ``InputError`` for an unknown name, or a dataset that
    one cannot judge.
    """
    from .weighted import Weighted

    parts = []
    if by_votes(specs):
        if len(specs) > 1:
            raise InputError("Votes stand alone: leave the other rewards out.")
        return VOTES.make("", load_clip)
    if not specs:
        raise InputError("No reward is given: name what to train for, such as checker.")
    for spec in specs:
        name, place, weight = place_of(spec)
        if name not in REWARDS:
            raise InputError(
                f"There is no reward {spec!r}: expected "
                f"{' or '.join(sorted(kind.usage for kind in REWARDS.values()))}, such as "
                "clip:demo=0.5."
            )
        REWARDS[name].check(dataset)
        parts.append((REWARDS[name].make(place, load_clip), weight))
    if not any(REWARDS[place_of(spec)[0]].alone for spec in specs):
        raise InputError(
            f"{specs[0]} alone asks for nothing to be changed: add a reward that asks for the edit."
        )
    return Weighted(parts)


def by_votes(specs: Sequence[str]) -> bool:
    """Whether specs of :func:`weighted_reward` ask a person."""
    return VOTES.name in [_split_weight(spec)[0] for spec in specs]


def _split_weight(spec: str) -> tuple[str, float]:
    """``spec`` without the weight after its last ``=``, and the weight."""
    named, mark, number = checked_text(spec, "The reward").rpartition("=")
    try:
        return (named, float(number)) if mark else (spec, 1.0)
    except ValueError:  # an = within a folder's name
        return spec, 1.0


def placed_spec(spec: str) -> str:
    """``spec`` of :func:`weighted_reward` such that it means the same from every folder."""
    named, weight = _split_weight(spec)
    name, mark, place = named.partition(":")
    if mark and place != "demo" and Path(place).exists():
        named = f"{name}:{Path(place).absolute()}"
    return f"{named}={weight!r}"

"""Rewards by name, for nodes and command line alike. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...mmp_core.errors import InputError

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
    FOLDER of a CLIP; None if there is nothing. ``check``: raises ``InputError`` for a dataset that
    it cannot judge.
    """

    name: str
    label: str
    help: str
    make: Callable[[str, ClipLoader], Reward]
    place: str | None = None
    check: Callable[[EditDataset], None] = lambda dataset: None

    @property
    def usage(self) -> str:
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
REWARDS = {kind.name: kind for kind in (CLIP, VOTES)}


def register(kind: RewardKind) -> None:
    REWARDS[kind.name] = kind


def widget_values(clips: Iterable[str]) -> list[str]:
    """What a node offers, ``clips`` being the names of the CLIPs that there are."""
    alone = [kind.label for kind in REWARDS.values() if not kind.place]
    return [*alone, *(f"{kind.label}: {clip}" for kind in _of_clips() for clip in clips)]


def from_widget(value: str) -> tuple[RewardKind, str]:
    """The reward that a widget's value names, and its place. Raises ``InputError``."""
    for kind in REWARDS.values():
        if not kind.place and value == kind.label:
            return kind, ""
    for kind in _of_clips():
        if value.startswith(f"{kind.label}: "):
            return kind, value.removeprefix(f"{kind.label}: ")
    raise InputError(f"There is no reward {value!r}: choose another.")


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
            raise InputError("Votes stand alone: give --reward votes without other rewards.")
        return VOTES.make("", load_clip)
    for spec in specs:
        named, weight = _split_weight(spec)
        name, _, place = named.partition(":")
        if name not in REWARDS:
            raise InputError(
                f"There is no reward {spec!r}: expected "
                f"{' or '.join(sorted(kind.usage for kind in REWARDS.values()))}, such as "
                "clip:demo=0.5."
            )
        REWARDS[name].check(dataset)
        parts.append((REWARDS[name].make(place, load_clip), weight))
    return Weighted(parts)


def by_votes(specs: Sequence[str]) -> bool:
    """Whether specs of :func:`weighted_reward` ask a person."""
    return VOTES.name in [_split_weight(spec)[0] for spec in specs]


def _split_weight(spec: str) -> tuple[str, float]:
    """``spec`` without the weight after its last ``=``, and the weight."""
    named, mark, number = spec.rpartition("=")
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

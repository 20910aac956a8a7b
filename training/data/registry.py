"""Datasets that are made on request instead of read from disk, by name. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dataset import EditDataset


@dataclass(frozen=True)
class GeneratedDataset:
    """``name``: on the command line. ``label``: in the node's widget, whose values are saved with
    workflows. ``help``: what it is, to follow the name in a list. ``make``: its first so many
    items. ``reward``: of ``rewards.registry``, the one to train for if none is given."""

    name: str
    label: str
    help: str
    make: Callable[[int], EditDataset]
    reward: str


GENERATED: dict[str, GeneratedDataset] = {}


def register(dataset: GeneratedDataset) -> None:
    GENERATED[dataset.name] = dataset

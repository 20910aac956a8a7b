"""Datasets that are made on request instead of read from disk, by name. Imports nothing heavy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ...mmp_core.checkpoint.load import Model
    from ..loop.ranks import Ranks
    from ..sft.run import SFTRun
    from ..sft.settings import SFTSettings
    from .dataset import EditDataset


Counted = Callable[[int, int], None]


class GeneratedDataset(ABC):
    """A world drawn by code, with a judge and a checkpoint of its own."""

    name: str
    """On the command line, and the checkpoint's."""
    label: str
    """In the node's widget, whose values are saved with workflows."""
    help: str
    """What it is, to follow the name in a list."""
    reward: str
    """Of ``rewards.registry``: the one to train for if none is given."""

    @abstractmethod
    def make(self, count: int, callback: Counted | None = None) -> EditDataset:
        """Its first ``count`` items. ``callback(done, total)`` is called before each."""

    @abstractmethod
    def evaluate(self, model: Model, **options: Any) -> dict[str, Any]:
        """Measures of ``model`` over its held-out tasks (``demo.evaluate.judge``)."""

    @abstractmethod
    def recipe(self, device: str) -> SFTSettings:
        """What its checkpoint is trained with from nothing on ``device``.

        Raises ``InputError`` if the image tokenizer, which such a run shares, is missing.
        """

    @abstractmethod
    def from_nothing(
        self, folder: Path, settings: SFTSettings, device: str, ranks: Ranks
    ) -> SFTRun:
        """The run in ``folder`` that trains its checkpoint from nothing."""

    @abstractmethod
    def write_checkpoint(self, run: SFTRun, out: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write ``weights`` of such a run as a checkpoint in the folder ``out``; ``out``."""


GENERATED: dict[str, GeneratedDataset] = {}


def register(dataset: GeneratedDataset) -> None:
    GENERATED[dataset.name] = dataset

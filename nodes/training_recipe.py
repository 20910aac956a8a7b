"""What training by rewards and on targets differ in, for the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..mmp_core import Model
from ..training.cases import Case
from ..training.data.dataset import EditDataset
from ..training.loop.run import PolicyRun
from ..training.loop.settings import RunSettings
from ..training.weights.policies import LoRA

Metrics = dict[str, float]


class Recipe(Protocol):
    """What differs between the two kinds of training.

    ``curve``: the metric that is plotted, and how it is called. ``most``: sequences of a step.
    """

    settings: RunSettings
    need_target: bool
    curve: tuple[str, str]
    most: int

    def check(self, dataset: EditDataset) -> None:
        """Raises ``InputError`` for a dataset that cannot be trained on."""

    def load(self) -> None:
        """Load what training needs beside the model, before there is a look at its memory."""

    def bytes_of(self, model: Model, cases: Sequence[Case], trained: int, at_once: int) -> int:
        """What ``at_once`` sequences need beside the weights."""

    def run(
        self, model: Model, cases: Sequence[Case], settings: RunSettings, folder: Path, policy: LoRA
    ) -> PolicyRun: ...

    def figures(self, metrics: Metrics) -> str:
        """A few lines on a step."""

    def picture(self, run: PolicyRun) -> Image.Image:
        """Samples of the run as it is now."""

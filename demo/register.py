"""What the toy world adds to rewards and datasets. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..mmp_core.errors import InputError
from ..training.data import registry as datasets
from ..training.rewards import registry as rewards

if TYPE_CHECKING:
    from ..training.cases import Reward
    from ..training.data.dataset import EditDataset


def register() -> None:
    """Make them known to nodes and command line."""
    datasets.register(
        datasets.GeneratedDataset("demo", "demo (toy world)", "the toy world", _dataset, "checker")
    )
    rewards.register(
        rewards.RewardKind(
            "checker",
            "checker (toy world)",
            "the toy world's exact judge",
            _checker,
            check=_check_tasks,
        )
    )


def _dataset(count: int) -> EditDataset:
    from .items import world_dataset

    return world_dataset(count)


def _checker(place: str, load_clip: rewards.ClipLoader) -> Reward:
    from .reward import CheckerReward

    return CheckerReward()


def _check_tasks(dataset: EditDataset) -> None:
    from .world import Task

    others = [item.name for item in dataset if not isinstance(item.facts, Task)]
    if others:
        raise InputError(
            f"{others[0]} of {dataset.place} is not a task of the toy world, and the checker can "
            "judge nothing else: choose a CLIP as the reward."
        )

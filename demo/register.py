"""What the toy world adds to rewards and datasets. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..mmp_core.errors import InputError
from ..training.data import registry as datasets
from ..training.rewards import registry as rewards

if TYPE_CHECKING:
    from torch import Tensor

    from ..mmp_core.checkpoint.load import Model
    from ..training.cases import Reward
    from ..training.data.dataset import EditDataset
    from ..training.data.registry import Counted
    from ..training.loop.ranks import Ranks
    from ..training.sft.run import SFTRun
    from ..training.sft.settings import SFTSettings


class ToyWorld(datasets.GeneratedDataset):
    name, label, help = "demo", "demo (toy world)", "the toy world"
    reward = "checker"

    def make(self, count: int, callback: Counted | None = None) -> EditDataset:
        from .items import world_dataset

        return world_dataset(count, callback=callback)

    def evaluate(self, model: Model, **options: Any) -> dict[str, Any]:
        from .evaluate import evaluate

        return evaluate(model, **options)

    def recipe(self, device: str) -> SFTSettings:
        from ..mmp_core.checkpoint.load import DEMO
        from .train import recipe_for

        if not (DEMO / "vqvae").is_dir():
            raise InputError(
                f"{DEMO} has no vqvae folder: the demo's image tokenizer, which this run shares, "
                "is missing; install the package again."
            )
        return recipe_for(device)

    def from_nothing(
        self, folder: Path, settings: SFTSettings, device: str, ranks: Ranks
    ) -> SFTRun:
        from ..mmp_core.checkpoint.load import DEMO
        from .train import transformer_run

        return transformer_run(folder, settings, device, DEMO, ranks=ranks)

    def write_checkpoint(self, run: SFTRun, out: Path, weights: Mapping[str, Tensor]) -> Path:
        from ..mmp_core.checkpoint.load import DEMO
        from .train import write_result

        return write_result(run, DEMO, out, weights)


class OpenTasks(ToyWorld):
    name, label = "demo-open", "demo: open instructions"
    help = "the same with instructions that leave something to choose, for votes"

    def make(self, count: int, callback: Counted | None = None) -> EditDataset:
        from .items import world_dataset
        from .open_tasks import task

        return world_dataset(count, task=task, place=self.label, callback=callback)


class NewWord(ToyWorld):
    name, label = "demo-word", "demo: a new word"
    help = "the same with stars called snow, which the demo knows as a colour alone, for sft"

    def make(self, count: int, callback: Counted | None = None) -> EditDataset:
        from .items import world_dataset
        from .new_word import task

        return world_dataset(count, task=task, place=self.label, callback=callback)


class PictureBook(datasets.GeneratedDataset):
    name, label, reward = "picture-book", "picture book", "checker"
    help = "pages of the picture book"

    def make(self, count: int, callback: Counted | None = None) -> EditDataset:
        from .items import world_dataset
        from .picture_book.tasks import task

        return world_dataset(count, task=task, place=self.label, callback=callback)

    def evaluate(self, model: Model, *, cases: int = 500, **options: Any) -> dict[str, Any]:
        from .evaluate import judge
        from .picture_book.tasks import task

        return judge(model, [task(seed, held_out=True) for seed in range(cases)], **options)

    def recipe(self, device: str) -> SFTSettings:
        from .picture_book.train import settings_for

        return settings_for(device)

    def from_nothing(
        self, folder: Path, settings: SFTSettings, device: str, ranks: Ranks
    ) -> SFTRun:
        from .picture_book.train import recipe
        from .train import transformer_run

        return transformer_run(folder, settings, device, folder, ranks=ranks, recipe=recipe())

    def write_checkpoint(self, run: SFTRun, out: Path, weights: Mapping[str, Tensor]) -> Path:
        from .picture_book.train import recipe
        from .train import write_result

        return write_result(run, run.folder.path, out, weights, recipe())


def register() -> None:
    """Make them known to nodes and command line."""
    for world in (ToyWorld(), OpenTasks(), NewWord(), PictureBook()):
        datasets.register(world)
    rewards.register(
        rewards.RewardKind(
            "checker",
            "checker (toy world)",
            "the exact judge of the toy world and the picture book",
            _checker,
            check=_check_tasks,
        )
    )


def _checker(place: str, load_clip: rewards.ClipLoader) -> Reward:
    from .reward import CheckerReward

    return CheckerReward()


def _check_tasks(dataset: EditDataset) -> None:
    from .worlds import AnyTask

    others = [item.name for item in dataset if not isinstance(item.facts, AnyTask)]
    if others:
        raise InputError(
            f"{others[0]} of {dataset.place} is not a task of the toy world or the picture book, "
            "and the checker can judge nothing else: choose a CLIP as the reward."
        )

"""What training by rewards and training on targets differ in, for the nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from ..mmp_core import Model
from ..training.cases import Case, Pair, Reward
from ..training.data.dataset import EditDataset
from ..training.loop.memory import pararl_bytes, sft_bytes
from ..training.loop.run import TrainingRun
from ..training.loop.settings import RunSettings
from ..training.pararl.run import ParaRLRun
from ..training.pararl.settings import ParaRLSettings
from ..training.rewards.registry import from_widget
from ..training.samples import answers
from ..training.sft.run import SFTRun
from ..training.sft.settings import SFTSettings
from ..training.weights.policies import LoRA
from . import host

Metrics = dict[str, float]
Settings = TypeVar("Settings", bound=RunSettings)
Run = TypeVar("Run", bound=TrainingRun)


class Recipe(ABC, Generic[Settings, Run]):
    """One kind of training.

    ``need_target``: whether every case needs its target. ``curve``: the metric that is plotted,
    and what it is called.
    """

    need_target: ClassVar[bool]
    curve: ClassVar[tuple[str, str]]

    def __init__(self, settings: Settings):
        self.settings = settings

    def load(self, dataset: EditDataset) -> list[host.HostedClip]:
        """Load what training needs beside the model; gives what shares its device.

        Raises ``InputError`` for a dataset that cannot be trained on.
        """
        return []

    @property
    @abstractmethod
    def most(self) -> int:
        """The number of sequences of a step."""

    @abstractmethod
    def bytes_of(self, model: Model, cases: Sequence[Case], trained: int, at_once: int) -> int:
        """Memory beside the weights that training on ``at_once`` sequences needs, in bytes."""

    @abstractmethod
    def run(
        self, model: Model, cases: Sequence[Case], settings: Settings, folder: Path, policy: LoRA
    ) -> Run:
        """The run in ``folder``; ``settings``: those of the recipe, but for the micro-batch."""

    @abstractmethod
    def figures(self, metrics: Metrics) -> str:
        """A few lines on a step."""

    @abstractmethod
    def samples(self, run: Run, count: int) -> list[Pair]:
        """Answers of the model as it is now."""


class ParaRL(Recipe[ParaRLSettings, ParaRLRun]):
    """``reward``: as its widget says."""

    need_target = False
    curve = ("reward_mean", "mean reward")

    def __init__(self, settings: ParaRLSettings, reward: str):
        super().__init__(settings)
        self.kind, self.place = from_widget(reward)
        self.reward: Reward | None = None

    def load(self, dataset: EditDataset) -> list[host.HostedClip]:
        self.kind.check(dataset)
        clips: list[host.HostedClip] = []

        def load_clip(name: str) -> host.HostedClip:
            clips.append(host.load_clip(name))
            return clips[-1]

        self.reward = self.kind.make(self.place, load_clip)
        return clips

    @property
    def most(self) -> int:
        return self.settings.groups * self.settings.group_size

    def bytes_of(self, model: Model, cases: Sequence[Case], trained: int, at_once: int) -> int:
        return pararl_bytes(model, cases, self.settings, trained, at_once)

    def run(
        self,
        model: Model,
        cases: Sequence[Case],
        settings: ParaRLSettings,
        folder: Path,
        policy: LoRA,
    ) -> ParaRLRun:
        assert self.reward is not None, "load() comes first"
        return ParaRLRun(model, cases, self.reward, settings, folder, policy=policy)

    def figures(self, metrics: Metrics) -> str:
        lines = [
            f"reward {metrics['reward_mean']:.3f} ± {metrics['reward_std']:.3f}",
            f"KL {metrics['kl']:.4f}, clipped {metrics['clip_fraction']:.1%}, "
            f"gradient {metrics['grad_norm']:.3g}",
        ]
        if ties := round(metrics["groups_skipped"]):
            lines.append(f"{ties} of {self._comparisons} comparisons were ties and taught nothing")
        return "\n".join(lines)

    @property
    def _comparisons(self) -> int:
        """Of the answers to one instruction with each other, per step."""
        settings, sampler = self.settings, self.settings.sampler
        if settings.reward_at == "output":
            return settings.groups
        steps = max(sampler.text_steps, sampler.image_steps)
        return settings.groups * min(settings.scored_steps, steps)

    def samples(self, run: ParaRLRun, count: int) -> list[Pair]:
        return run.samples(count)


class SFT(Recipe[SFTSettings, SFTRun]):
    need_target = True
    curve = ("loss", "loss")

    @property
    def most(self) -> int:
        return self.settings.batch_size

    def bytes_of(self, model: Model, cases: Sequence[Case], trained: int, at_once: int) -> int:
        return sft_bytes(model, cases, self.settings, trained, at_once)

    def run(
        self, model: Model, cases: Sequence[Case], settings: SFTSettings, folder: Path, policy: LoRA
    ) -> SFTRun:
        return SFTRun(model, cases, settings, folder, policy=policy)

    def figures(self, metrics: Metrics) -> str:
        return (
            f"loss {metrics['loss']:.3g}: text {metrics['text_loss']:.3g}, picture "
            f"{metrics['image_loss']:.3g}\ngradient {metrics['grad_norm']:.3g}"
        )

    def samples(self, run: SFTRun, count: int) -> list[Pair]:
        return answers(
            run.model,
            run.first_cases(count),
            seed=run.settings.seed,
            micro_batch=min(count, run.settings.micro_batch),
            progress=lambda done, total: host.stop_if_interrupted(),
        )

"""What training by rewards and training on targets differ in, for the nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from ..training.cases import Case, Pair, Reward
from ..training.data.dataset import EditDataset
from ..training.dpo.preferences import Preferences
from ..training.dpo.run import DPORun
from ..training.dpo.settings import DPOSettings
from ..training.loop.memory import dpo_bytes, pararl_bytes, sft_bytes
from ..training.loop.run import TrainingRun
from ..training.loop.settings import RunSettings
from ..training.pararl.run import ParaRLRun
from ..training.pararl.settings import ParaRLSettings
from ..training.rewards.registry import VOTES, from_widget
from ..training.samples import answers
from ..training.sft.run import SFTRun
from ..training.sft.settings import SFTSettings
from . import host
from .host import folders

Metrics = dict[str, float]
_MOST_SEARCHED = 10_000
"""Comparisons that prompts to show are taken from."""


class Recipe(ABC):
    """One kind of training.

    ``need_target``: whether every case needs its target. ``curve``: the metric that is plotted,
    and what it is called. ``bytes_of``: the estimate of its memory, of ``training.loop.memory``.
    ``waits_for_votes``: whether every step ends with answers to be voted on.
    """

    need_target: ClassVar[bool]
    curve: ClassVar[tuple[str, str]]
    bytes_of: ClassVar[Callable[..., int]]
    waits_for_votes = False

    def __init__(self, settings: RunSettings):
        self.settings = settings

    def load(self, dataset: EditDataset | Preferences) -> list[host.HostedClip]:
        """Load what training needs beside the model; gives what shares its device.

        Raises ``InputError`` for a dataset that cannot be trained on.
        """
        return []

    def options(self) -> dict[str, Any]:
        """Of the command that trains alike, beside those of the settings."""
        return {}

    @property
    @abstractmethod
    def most(self) -> int:
        """The number of sequences of a step."""

    @abstractmethod
    def run(self, **parts: Any) -> TrainingRun:
        """The run of ``parts``, which are what every run is made of."""

    @abstractmethod
    def figures(self, metrics: Metrics) -> str:
        """A few lines on a step."""

    @abstractmethod
    def samples(self, run: Any, count: int) -> list[Pair]:
        """Answers of the model as it is now."""


class ParaRL(Recipe):
    """``reward``: as its widget says."""

    need_target = False
    curve = ("reward_mean", "mean reward")
    bytes_of = staticmethod(pararl_bytes)
    settings: ParaRLSettings
    reward: Reward

    def __init__(self, settings: ParaRLSettings, reward: str):
        super().__init__(settings)
        self.kind, self.place = from_widget(reward)
        self.waits_for_votes = self.kind is VOTES

    def load(self, dataset: EditDataset) -> list[host.HostedClip]:
        self.kind.check(dataset)
        clips: list[host.HostedClip] = []

        def load_clip(name: str) -> host.HostedClip:
            clips.append(host.load_clip(name))
            return clips[-1]

        self.reward = self.kind.make(self.place, load_clip)
        return clips

    def options(self) -> dict[str, Any]:
        place = folders.clips()[self.place] if self.place else None
        named = f"{self.kind.name}:{place}" if place else self.kind.name
        sampler = self.settings.sampler
        names = ("text_steps", "image_steps", "text_temperature", "image_temperature")
        return {"reward": [f"{named}=1.0"], **{name: getattr(sampler, name) for name in names}}

    @property
    def most(self) -> int:
        return self.settings.groups * self.settings.group_size

    def run(self, **parts: Any) -> ParaRLRun:
        return ParaRLRun(reward=self.reward, **parts)

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
        if settings.reward_at == "output" or self.waits_for_votes:
            return settings.groups
        steps = max(sampler.text_steps, sampler.image_steps)
        return settings.groups * min(settings.scored_steps, steps)

    def samples(self, run: ParaRLRun, count: int) -> list[Pair]:
        return run.samples(count)


class SFT(Recipe):
    need_target = True
    curve = ("loss", "loss")
    bytes_of = staticmethod(sft_bytes)
    settings: SFTSettings

    @property
    def most(self) -> int:
        return self.settings.batch_size

    def run(self, **parts: Any) -> SFTRun:
        return SFTRun(**parts)

    def figures(self, metrics: Metrics) -> str:
        return (
            f"loss {metrics['loss']:.3g}: text {metrics['text_loss']:.3g}, picture "
            f"{metrics['image_loss']:.3g}\ngradient {metrics['grad_norm']:.3g}"
        )

    def samples(self, run: SFTRun, count: int) -> list[Pair]:
        return _answers(run, run.first_cases(count))


class DPO(Recipe):
    need_target = True
    curve = ("loss", "loss")
    bytes_of = staticmethod(dpo_bytes)
    settings: DPOSettings

    @property
    def most(self) -> int:
        return 2 * self.settings.masks

    def run(self, **parts: Any) -> DPORun:
        return DPORun(**parts)

    def figures(self, metrics: Metrics) -> str:
        return (
            f"loss {metrics['loss']:.3g}, at the start 0.693\nas you picked: "
            f"{metrics['preferred']:.0%} of comparisons, by {metrics['margin']:.3g}\n"
            f"gradient {metrics['grad_norm']:.3g}"
        )

    def samples(self, run: DPORun, count: int) -> list[Pair]:
        prompts = {case.origin: case for case in run.first_cases(_MOST_SEARCHED)}
        return _answers(run, list(prompts.values())[:count])


def _answers(run: TrainingRun, cases: list[Case]) -> list[Pair]:
    return answers(
        run.model,
        cases,
        seed=run.settings.seed,
        micro_batch=min(len(cases), run.settings.micro_batch),
        progress=lambda done, total: host.stop_if_interrupted(),
    )

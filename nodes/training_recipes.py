"""What training by rewards and training on targets differ in, for the nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
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
from ..training.pararl.settings import ROLLOUTS, ParaRLSettings
from ..training.rewards.registry import (
    REWARDS,
    VOTES,
    from_widget,
    place_of,
    specs_in,
    weighted_reward,
)
from ..training.rewards.weighted import Weighted
from ..training.samples import answers
from ..training.sft.run import SFTRun
from ..training.sft.settings import SFTSettings
from . import host
from .host import folders

Metrics = dict[str, float]
_SUMS = ("reward_mean", "reward_std", "reward_calls")
_MOST_SEARCHED = 10_000
"""Comparisons that prompts to show are taken from."""


def part_name(metric: str) -> str:
    """Of a part of a reward, as people call it."""
    return metric.removeprefix("reward_")


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

    def parts(self, metrics: Metrics) -> list[str]:
        """The metrics whose weighted sum ``curve`` shows, where it is one."""
        return []

    @abstractmethod
    def run(self, **parts: Any) -> TrainingRun:
        """The run of ``parts``, which are what every run is made of."""

    @abstractmethod
    def figures(self, metrics: Metrics) -> str:
        """A few lines on a step."""

    @abstractmethod
    def samples(self, run: Any, count: int) -> list[Pair]:
        """Answers of the model as it is now."""


def clips_of(reward: str, more: str) -> list[Path | None]:
    """Folders of the CLIPs that rewards are made of. Raises ``InputError`` for unknown ones."""
    kind, place = from_widget(reward)
    places = [place] if kind.place else []
    for name, place, _ in map(place_of, specs_in(more)):
        if name in REWARDS and REWARDS[name].place:
            places.append(place)
    return [folders.clips().get(place) for place in places]


class ParaRL(Recipe):
    """``reward``: as its widget says. ``more``: others as text, with their weights."""

    need_target = False
    curve = ("reward_mean", "mean reward")
    bytes_of = staticmethod(pararl_bytes)
    settings: ParaRLSettings
    reward: Reward

    def __init__(self, settings: ParaRLSettings, reward: str, more: str = ""):
        super().__init__(settings)
        kind, place = from_widget(reward)
        self.specs = [f"{kind.name}:{place}" if place else kind.name, *specs_in(more)]
        self.waits_for_votes = kind is VOTES

    def load(self, dataset: EditDataset | Preferences) -> list[host.HostedClip]:
        assert isinstance(dataset, EditDataset)
        clips: list[host.HostedClip] = []

        def load_clip(name: str) -> host.HostedClip:
            clips.append(host.load_clip(name))
            return clips[-1]

        summed = weighted_reward(self.specs, load_clip, dataset)
        parts = summed.parts if isinstance(summed, Weighted) else []
        self.reward = parts[0][0] if len(parts) == 1 else summed  # as runs of one are described
        return clips

    def options(self) -> dict[str, Any]:
        sampler = self.settings.sampler
        specs = []
        for name, place, weight in map(place_of, self.specs):
            place = str(folders.clips()[place]) if REWARDS[name].place else place
            specs.append(f"{name}:{place}={weight}" if place else f"{name}={weight}")
        return {"reward": specs, **{name: getattr(sampler, name) for name in ROLLOUTS}}

    def parts(self, metrics: Metrics) -> list[str]:
        named = [n for n in metrics if n.startswith("reward_") and n not in _SUMS]
        return named if len(named) > 1 else []

    @property
    def most(self) -> int:
        return self.settings.groups * self.settings.group_size

    def run(self, **parts: Any) -> ParaRLRun:
        return ParaRLRun(reward=self.reward, **parts)

    def figures(self, metrics: Metrics) -> str:
        lines = [
            f"reward {metrics['reward_mean']:.3f} ± {metrics['reward_std']:.3f}",
            ", ".join(f"{part_name(part)} {metrics[part]:.3f}" for part in self.parts(metrics)),
            f"KL {metrics['kl']:.4f}, clipped {metrics['clip_fraction']:.1%}, "
            f"gradient {metrics['grad_norm']:.3g}",
        ]
        if ties := round(metrics["groups_skipped"]):
            lines.append(f"{ties} of {self._comparisons} comparisons were ties and taught nothing")
        return "\n".join(filter(None, lines))

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

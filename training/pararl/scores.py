"""Rewards of rollouts, and what their steps are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ..cases import Pair, Reward
from ..loop.run import PhaseCallback
from ..rewards.weighted import checked, name_of
from .pairs import final_pairs, needs_before, trajectory_pairs
from .rollout import Rollouts
from .settings import ParaRLSettings


@dataclass(frozen=True)
class Scores:
    """Of one training step's rollouts, of each (groups, steps, size) float32.

    ``rewards``: raw; of the final pair alone, one step. ``judged``: what advantages are taken of:
    the rewards, or the gains of the steps. ``calls``: how many pairs were scored.
    """

    rewards: list[Tensor]
    judged: list[Tensor]
    calls: int


def score(
    model: Model,
    rolled: Sequence[Rollouts],
    reward: Reward,
    settings: ParaRLSettings,
    progress: PhaseCallback | None = None,
) -> Scores:
    """Ask ``reward`` once about all pairs that ``settings.reward_at`` needs."""
    at, size = settings.reward_at, settings.micro_batch
    view = final_pairs if at == "output" else trajectory_pairs
    pairs = [view(model, r, micro_batch=size) for r in rolled]
    if at == "gain":
        pairs += [trajectory_pairs(model, r, micro_batch=size, before=True) for r in rolled]
    together = [pair for part in pairs for pair in part]
    if progress:
        progress("rewards", 0, len(together))
    asked: Sequence[Pair] = _Told(together, progress) if progress else together
    values = checked(reward, asked, name_of(reward)).split([len(part) for part in pairs])
    shaped = zip(rolled, values[: len(rolled)], strict=True)
    rewards = [part.view(len(r.groups), -1, r.size) for r, part in shaped]
    judged = rewards
    if at == "gain":
        befores = zip(rolled, rewards, values[len(rolled) :], strict=True)
        judged = [gains(r, after, before) for r, after, before in befores]
    return Scores(rewards, judged, len(together))


class _Told(Sequence[Pair]):
    """``pairs``; ``progress`` is told of each that a reward looks at, and may raise."""

    def __init__(self, pairs: Sequence[Pair], progress: PhaseCallback):
        self._pairs, self._progress = pairs, progress

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            self._progress("rewards", index, len(self))
        return self._pairs[index]


def gains(rollouts: Rollouts, after: Tensor, before: Tensor) -> Tensor:
    """(groups, steps, size): by how much each scored step raised the reward.

    ``after``: (groups, steps, size), the rewards after each. ``before``: those before the steps of
    :func:`needs_before`, in their order; before the others they are the last step's ``after``.
    """
    previous = after.roll(1, dims=1)
    previous.view(-1)[needs_before(rollouts).to(after.device)] = before
    return after - previous

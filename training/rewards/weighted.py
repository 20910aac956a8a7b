"""The weighted sum of rewards, and the check of what a reward gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor

from ...mmp_core.errors import InputError, shown
from ...mmp_core.outside import check_kind
from ..cases import Pair, Reward


class Weighted:
    """The sum of rewards times their weights.

    ``parts``: any callables from pairs to as many finite numbers, each with its weight. What a part
    gives is checked: ``InputError`` names the reward that fails. A reward is called what its
    ``name`` says, else by the name of its function or class.
    """

    name = "weighted"

    def __init__(self, parts: Sequence[tuple[Reward, float]]):
        check_kind(parts, Sequence, "parts", "rewards, each with its weight")
        if not parts:
            raise InputError("There is no reward: give at least one.")
        self._parts: dict[str, tuple[Reward, float]] = {}
        for part in parts:
            if not isinstance(part, Sequence) or isinstance(part, str) or len(part) != 2:
                raise InputError(f"parts has {shown(part)}; expected a reward with its weight.")
            reward, weight = part
            check_kind(reward, Callable, "reward", "something that scores pairs")
            if not isinstance(weight, Real) or not math.isfinite(weight):
                given = shown(weight)
                raise InputError(f"The weight of {name_of(reward)} is {given}: give a number.")
            name, same = name_of(reward), 1
            while name in self._parts:
                same += 1
                name = f"{name_of(reward)} {same}"
            self._parts[name] = reward, weight
        self._forget()

    def __call__(self, pairs: Sequence[Pair]) -> Tensor:
        total = torch.zeros(len(pairs))
        for name, (reward, weight) in self._parts.items():
            values = checked(reward, pairs, name)
            self._values[name].append(values)
            total += weight * values
        return total

    @property
    def parts(self) -> list[tuple[Reward, float]]:
        return list(self._parts.values())

    @property
    def described(self) -> str:
        return " + ".join(f"{name}={weight:g}" for name, (_, weight) in self._parts.items())

    def take_sums(self, first: int | None = None) -> tuple[dict[str, float], int]:
        """The sum of each reward, without its weight, over the pairs since the last call, or the
        ``first`` of these, and how many they are."""
        values = {name: torch.cat(own)[:first] for name, own in self._values.items()}
        self._forget()
        count = len(next(iter(values.values())))
        return {name: float(own.sum()) for name, own in values.items()}, count

    def _forget(self) -> None:
        self._values: dict[str, list[Tensor]] = {name: [torch.zeros(0)] for name in self._parts}


def name_of(reward: Reward) -> str:
    given = getattr(reward, "name", None) or getattr(reward, "__name__", None)
    return given if isinstance(given, str) else type(reward).__name__


def described(reward: Reward) -> str:
    """The reward's name, or those of its parts with their weights: ``clip=0.5 + checker=1``."""
    if isinstance(reward, Weighted):
        return reward.described
    return name_of(reward)


def checked(reward: Reward, pairs: Sequence[Pair], name: str) -> Tensor:
    """What ``reward`` gives ``pairs``: (N,) float32 on the CPU, without gradient.

    A list of numbers or an array is taken, too. Raises ``InputError`` naming the reward where it
    fails, gives another number of them, or one is not finite.
    """
    try:
        values = torch.as_tensor(reward(pairs)).detach().to("cpu", torch.float32)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"The reward {name} failed: {type(error).__name__}: {error}") from error
    if values.shape != (len(pairs),):
        raise InputError(
            f"The reward {name} gave values of shape {tuple(values.shape)} for {len(pairs)} pairs: "
            "it must give one number for each."
        )
    if not values.isfinite().all():
        first = int((~values.isfinite()).nonzero()[0])
        raise InputError(
            f"The reward {name} gave {values[first]} for {pairs[first].case.name}: it must give "
            "finite numbers."
        )
    return values

"""What training works on: tokenised cases, and the pairs of text and picture that rewards judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from ..mmp_core.errors import InputError
from ..mmp_core.state import Prompt, TokenState


@dataclass(frozen=True)
class Case:
    """One thing to train on, tokenised.

    ``name``: how messages call it. ``prompt``: batch 1, its initial state all masked.
    ``instruction``: the same in words. ``source()``: the picture to edit as the model sees it, read
    anew at each call; ``None`` to generate without one. ``target``: the answer without masks (batch
    1), which only SFT and DPO need. ``rejected``: for DPO, an answer that was liked less than the
    target. ``changes()``: (1, H, W) bool, the image tokens that an edit is to change, computed anew
    at each call; ``None`` where nothing says it. ``facts``: whatever else a reward needs, such as
    the toy world's task. ``image_weight``: (1, H, W) float, what the loss of each image token of
    the target counts; ``None`` for 1 everywhere (the paper's loss). ``origin``: equal for cases
    made of the same pictures, "" where their tokens say that.
    """

    name: str
    prompt: Prompt
    instruction: str
    source: Callable[[], Image.Image] | None
    target: TokenState | None = None
    facts: Any = None
    image_weight: Tensor | None = None
    origin: str = ""
    rejected: TokenState | None = None
    changes: Callable[[], Tensor | None] | None = None

    def needed_target(self) -> TokenState:
        """The target. Raises ``InputError`` without one."""
        if self.target is None:
            raise InputError(
                f"{self.name} has no target, which SFT needs: give every case its text and "
                "picture, or train by rewards."
            )
        return self.target


class EndlessCases(ABC):
    """Cases that are made by their number, from 0 up without end, each trained on once.

    ``fingerprint``: differs where the same number gives another case.
    """

    fingerprint: str

    @abstractmethod
    def __getitem__(self, number: int, /) -> Case: ...


Cases = Sequence[Case] | EndlessCases


@dataclass(frozen=True)
class Pair:
    """Text and picture of one rollout at one denoising step.

    ``text``: what is unmasked, masked tokens left out; ``marked``: the same with ``░`` for each
    masked token. ``picture``: the model's likeliest where masked. ``progress``: share of the run's
    steps that are done, 0 … 1; 1 is the final pair.
    """

    case: Case
    text: str
    marked: str
    picture: Image.Image
    progress: float


Reward = Callable[[Sequence[Pair]], Tensor]
"""Pairs to rewards: (N,) float32 on the CPU, higher is better, any scale."""

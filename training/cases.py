"""What training works on: tokenised cases, and the pairs of text and picture that rewards judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from ..mmp_core.state import Prompt, TokenState


@dataclass(frozen=True)
class Case:
    """One thing to train on, tokenised.

    ``name``: how messages call it. ``prompt``: batch 1, its initial state all masked.
    ``instruction``: the same in words. ``source()``: the picture to edit as the model sees it, read
    anew at each call; ``None`` to generate without one. ``target``: the fully decided answer (batch
    1), which only SFT needs.
    ``facts``: whatever else a reward needs, such as the toy world's task.
    """

    name: str
    prompt: Prompt
    instruction: str
    source: Callable[[], Image.Image] | None
    target: TokenState | None = None
    facts: Any = None


@dataclass(frozen=True)
class Pair:
    """Text and picture of one rollout at one denoising step.

    ``text``: what is decided, undecided tokens dropped; ``marked``: the same with ``░`` for each
    undecided token. ``picture``: the model's likeliest where undecided. ``progress``: share of the
    run's steps that are done, 0 … 1; 1 is the final pair.
    """

    case: Case
    text: str
    marked: str
    picture: Image.Image
    progress: float


Reward = Callable[[Sequence[Pair]], Tensor]
"""Pairs to rewards: (N,) float32 on the CPU, higher is better, any scale."""

"""What a step decides from hidden states and logits, by Triton kernels where they can run.

Where they cannot (no CUDA, no Triton, float32, ``MMADA_KERNELS=0`` in the environment) torch
computes the same: :mod:`.plain`. From the same logits both choose the same wherever one is ahead by
more than float32 rounds; ties go to the lowest in both; confidences differ by rounding alone.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..transformer import MaskedDiffusionTransformer
from . import plain

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageLogits:
    """What the branches of a guidance say about image positions.

    ``logits``: (B, n, codes), of the conditional branch first, then of one per scale.
    """

    logits: tuple[Tensor, ...]
    scales: tuple[float, ...]

    @property
    def choices(self) -> int:
        return self.logits[0].shape[-1]

    def guided(self) -> Tensor:
        """(B, n, codes) float32."""
        return plain.guided(self.logits, self.scales)

    def choose(self, exponential: Tensor | None) -> tuple[Tensor, Tensor]:
        """See :func:`.plain.choose_image`."""
        if self._fit_the_kernel():
            from .image import choose_image

            with torch.cuda.device_of(self.logits[0]):
                return choose_image(self.logits, self.scales, exponential)
        return plain.choose_image(self.guided(), exponential)

    def _fit_the_kernel(self) -> bool:
        if not available(self.logits[0].device):
            return False
        from .image import MOST_BRANCHES, MOST_CODES

        return len(self.logits) <= MOST_BRANCHES and self.choices <= MOST_CODES


@dataclass(frozen=True)
class TextLogits:
    """What the branches of a guidance say about text positions, before the head.

    ``hidden``: normed states (B, n, d_model), of the conditional branch first, then of one per
    scale. ``words``: the part of the vocabulary to choose from.
    """

    transformer: MaskedDiffusionTransformer
    hidden: tuple[Tensor, ...]
    scales: tuple[float, ...]
    words: slice

    @property
    def choices(self) -> int:
        return self.words.stop - self.words.start

    def guided(self) -> Tensor:
        """(B, n, words) float32 logits."""
        logits = [self.transformer.logits(part, self.words) for part in self.hidden]
        return plain.guided(logits, self.scales)

    def choose(self, temperature: float, exponential: Tensor | None) -> tuple[Tensor, Tensor]:
        """The id at each position and its log-odds; see :func:`.plain.choose_text`."""
        if not self._fit_the_kernel():
            words, log_odds = plain.choose_text(self.guided(), temperature, exponential)
            return words + self.words.start, log_odds
        from .text import choose_text

        scale, first = self.transformer.logit_scale, self.hidden[0]
        with torch.cuda.device_of(first), self.transformer.head(first, self.words) as head:
            words, log_odds = choose_text(
                self.hidden, self.scales, head, scale, temperature, exponential
            )
        return words + self.words.start, log_odds

    def _fit_the_kernel(self) -> bool:
        if not available(self.hidden[0].device):
            return False
        from .text import DTYPES, MOST_BRANCHES

        return len(self.hidden) <= MOST_BRANCHES and self.hidden[0].dtype in DTYPES


def available(device: torch.device) -> bool:
    """Whether the kernels are used on ``device``."""
    return device.type == "cuda" and os.environ.get("MMADA_KERNELS") != "0" and _run_on(device)


@cache
def _run_on(device: torch.device) -> bool:
    """Tried once on a few numbers: compiling needs more than the package, such as a C compiler."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from .image import choose_image
        from .text import choose_text

        numbers = torch.arange(64.0, device=device, dtype=torch.bfloat16).view(1, 4, 16)
        with torch.cuda.device_of(numbers):
            codes, _ = choose_image([numbers], [], None)
            right = torch.equal(codes, numbers.argmax(-1))
            few, many = numbers[0], numbers[0].repeat(17, 1)
            likeliest = (many @ few.T).argmax(-1)
            for rows, scales in ((few, []), (many, []), (few, [1.0])):  # all tiles that a run uses
                words, _ = choose_text([rows] * (1 + len(scales)), scales, few, None, 0.0, None)
                right &= torch.equal(words, likeliest[: len(rows)])
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # whatever it is, torch computes the same
        return _without(f"{type(problem).__name__}: {problem}")
    return right or _without("wrong results")


def _without(reason: str) -> bool:
    _log.info("Sampling without Triton kernels (%s).", reason.partition("\n")[0])
    return False

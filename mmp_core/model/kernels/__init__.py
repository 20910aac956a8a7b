"""Triton kernels, where they can run: what a step chooses from hidden states and logits, and the
rotation of queries and keys.

Where they cannot (no CUDA, no Triton, float32, ``MMADA_KERNELS=0`` in the environment) torch
computes the same: :mod:`.plain`. From the same logits both choose the same wherever one is ahead by
more than float32 rounds; ties go to the lowest in both; confidences differ by rounding alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from os import environ
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import plain

if TYPE_CHECKING:
    from ..transformer import MaskedDiffusionTransformer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageLogits:
    """What the branches of a guidance say about image positions. ``logits``: (B, n, codes), of the
    conditional branch first, then of one per scale."""

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
        if available(self.logits[0].device):
            from .image import MOST_BRANCHES, MOST_CODES, choose_image

            if len(self.logits) <= MOST_BRANCHES and self.choices <= MOST_CODES:
                with torch.cuda.device_of(self.logits[0]):
                    return choose_image(self.logits, self.scales, exponential)
        return plain.choose_image(self.guided(), exponential)


@dataclass(frozen=True)
class TextLogits:
    """What the branches of a guidance say about text positions, before the head. ``hidden``: normed
    states (B, n, d_model), of the conditional branch first, then of one per scale. ``words``: the
    part of the vocabulary to choose from. ``never``: an id in it that is not to be chosen."""

    transformer: MaskedDiffusionTransformer
    hidden: tuple[Tensor, ...]
    scales: tuple[float, ...]
    words: slice
    never: int | None = None

    @property
    def choices(self) -> int:
        return self.words.stop - self.words.start

    def guided(self) -> Tensor:
        """(B, n, words) float32 logits."""
        logits = [self.transformer.logits(part, self.words) for part in self.hidden]
        combined = plain.guided(logits, self.scales)
        if self.never is not None:
            combined[..., self.never - self.words.start] = -torch.inf
        return combined

    def choose(self, temperature: float, exponential: Tensor | None) -> tuple[Tensor, Tensor]:
        """The id at each position and its log-odds; see :func:`.plain.choose_text`."""
        words, log_odds = self._choose(temperature, exponential)
        return words + self.words.start, log_odds

    def _choose(self, temperature: float, exponential: Tensor | None) -> tuple[Tensor, Tensor]:
        first, model = self.hidden[0], self.transformer
        if self.never is None and available(first.device):
            from .text import DTYPES, MOST_BRANCHES, choose_text

            if len(self.hidden) <= MOST_BRANCHES and first.dtype in DTYPES:
                with torch.cuda.device_of(first), model.head(first, self.words) as head:
                    scale = model.logit_scale
                    return choose_text(
                        self.hidden, self.scales, head, scale, temperature, exponential
                    )
        return plain.choose_text(self.guided(), temperature, exponential)


def available(device: torch.device) -> bool:
    """Whether the kernels are used on ``device``."""
    return device.type == "cuda" and environ.get("MMADA_KERNELS") != "0" and _run_on(device)


@cache
def _run_on(device: torch.device) -> bool:
    """Tried once on a few numbers: compiling needs more than the package, such as a C compiler."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        right = _agree_with_torch(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # whatever it is, torch computes the same
        return _without(f"{type(problem).__name__}: {problem}")
    return right or _without("wrong results")


def _agree_with_torch(device: torch.device) -> bool:
    """Whether the kernels choose as torch does among 300 codes and words, with noise and without,
    and rotate as it does. The numbers are whole, so that sums are exact; noise moves each choice
    far."""
    from ..rotary import rotate
    from . import rotary
    from .image import choose_image
    from .text import choose_text

    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-4, 5, (2, 300, 16), generator=generator)
    head, hidden = numbers.to(device, torch.bfloat16)
    many, few = hidden[:70], hidden[:5]
    noise = torch.ones(5, 300, device=device)
    noise[range(5), range(7, 300, 60)] = 1e-20
    tiles = [(few, (), None), (many, (), None), (few, (1.0,), None), (few, (), noise)]
    right = True
    with torch.cuda.device_of(head):
        for rows, scales, draws in tiles:  # all that a run uses
            branches = [rows, rows.flip(0)][: 1 + len(scales)]
            logits = [F.linear(branch, head) for branch in branches]
            expected = plain.choose_text(plain.guided(logits, scales), 20.0, draws)
            right &= _same(choose_text(branches, scales, head, None, 20.0, draws), expected)
            logits = [part / 16 for part in logits]
            expected = plain.choose_image(plain.guided(logits, scales), draws)
            right &= _same(choose_image(logits, scales, draws), expected)
        queries, table = head.view(1, 3, 100, 16), hidden[:200, :8].float().view(2, 100, 8)
        table = torch.cat((table, table), dim=-1)
        with torch.enable_grad():
            expected = rotate(queries, table)
        right &= torch.equal(rotary.rotate(queries, table), expected)
    return right


def _same(ours: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    close = torch.allclose(ours[1], expected[1], rtol=1e-4, atol=1e-4)
    return close and torch.equal(ours[0], expected[0])


def _without(reason: str) -> bool:
    _log.info("Sampling without Triton kernels (%s).", reason.partition("\n")[0])
    return False

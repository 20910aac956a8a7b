"""ML-Cache, as released: positions with the lowest largest logits are computed anew.

Lumina-DiMOO, arXiv 2510.06308; Alpha-VLLM/Lumina-DiMOO 81344e6, which has it for text to image
alone. For edits and for text it is our generalisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.transformer import MaskedDiffusionTransformer
from ..variants.base import ModelInput
from .cache import BranchCache, as_positions
from .plan import StepTargets

_PART = 512
"""Positions whose logits are held at once."""


@dataclass(frozen=True)
class MLCache:
    """``choices``: the part of the vocabulary whose largest logit counts, that of the answer.
    ``steps``: of the run. ``reused``: share (0 … 1) of a branch's positions that keep what they
    had. The steps up to ``warmup`` (0 … 1) of the run, and then each ``refresh_every``-th, compute
    all. The defaults are the authors'."""

    transformer: MaskedDiffusionTransformer
    choices: slice
    steps: int
    reused: float = 0.9
    refresh_every: int = 5
    warmup: float = 0.3

    def computes_all(self, step: int) -> bool:
        """Whether the step at ``step``, from 0, computes every position."""
        warm = int(self.steps * self.warmup)
        return step <= warm or (step - warm) % self.refresh_every == 0

    def positions(
        self,
        branch: str,
        model_input: ModelInput,
        cache: BranchCache,
        ids: Tensor,
        targets: StepTargets,
    ) -> Tensor | None:
        """(B, n) positions of ``ids`` (B, L) to compute, ``L`` for none; ``None`` for all."""
        if cache.hidden is None or self.computes_all(targets.last.index + 1):
            return None
        wanted = self.uncertain(cache.hidden[:, : ids.shape[1]])
        return as_positions(wanted, int(wanted.sum(dim=1).max()))

    def uncertain(self, hidden: Tensor) -> Tensor:
        """(B, L) bool: the positions with the lowest largest logits. ``hidden``: normed states
        (B, L, d_model)."""
        peaks = self.peaks(hidden)
        threshold = torch.quantile(peaks, 1 - self.reused, dim=1, keepdim=True)
        return peaks <= threshold

    def peaks(self, hidden: Tensor) -> Tensor:
        """(B, L) float32: the largest logit of each position."""
        parts = hidden.split(_PART, dim=1)
        peaks = [self.transformer.logits(part, self.choices).amax(dim=-1) for part in parts]
        return torch.cat(peaks, dim=1).float()

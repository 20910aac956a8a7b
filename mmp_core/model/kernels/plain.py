"""What the kernels compute, in torch: the definition, and the way where they cannot run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def choose_image(scores: Tensor, exponential: Tensor | None) -> tuple[Tensor, Tensor]:
    """The code at each position and the logarithm of its probability: (B, n) int64, float32.
    ``scores``: guided logits (B, n, C) float32. ``exponential``: (B, n, C) float32 draws, which
    make it a sample; ``None`` takes the likeliest. Ties go to the lowest code."""
    log_p = scores.log_softmax(dim=-1)
    noisy = log_p if exponential is None else gumbel(exponential).add_(log_p)
    chosen = noisy.argmax(dim=-1)
    return chosen, log_p.gather(-1, chosen[..., None])[..., 0]


def choose_text(
    scores: Tensor, temperature: float, exponential: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The word at each position and its :func:`log_odds`: (B, n) int64, float32. ``scores``: guided
    logits (B, n, V) float32. ``exponential``: (B, n, V) float32 draws, for noise of scale
    ``temperature`` on them. Ties go to the lowest word."""
    noisy = scores
    if exponential is not None:
        noisy = gumbel(exponential).mul_(temperature).add_(scores)
    chosen = noisy.argmax(dim=-1)
    return chosen, log_odds(scores, chosen)


def guided(logits: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """``cond + Σ scale·(cond - branch)`` in float32; the conditional logits come first."""
    conditional = combined = logits[0].float()
    for scale, branch in zip(scales, logits[1:], strict=True):
        combined = (conditional - branch.float()).mul_(scale).add_(combined)
    return combined


def gumbel(exponential: Tensor) -> Tensor:
    """Standard Gumbel noise from standard exponential draws."""
    return exponential.clamp_min(1e-30).log_().neg_()


def log_odds(logits: Tensor, chosen: Tensor) -> Tensor:
    """(B, n) logarithm of p/(1-p) of ``chosen`` (B, n) under float ``logits`` (B, n, V). Ranks as
    the probability does, but keeps apart what rounds to 1, which in float32 p does not."""
    scores = logits.gather(-1, chosen[..., None])[..., 0]
    others = logits.scatter(-1, chosen[..., None], -torch.inf)
    largest = others.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
    total = others.sub_(largest).exp_().sum(dim=-1).log_()  # logsumexp without a copy
    return scores - total.add_(largest[..., 0])

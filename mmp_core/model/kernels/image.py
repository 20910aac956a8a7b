"""The image's side of a step in one kernel: guidance, softmax, sample, confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_BRANCHES, MOST_CODES = 4, 16384


def choose_image(
    logits: Sequence[Tensor], scales: Sequence[float], exponential: Tensor | None
) -> tuple[Tensor, Tensor]:
    """:func:`.plain.choose_image` of what :func:`.plain.guided` makes of ``logits``: at most
    ``MOST_BRANCHES`` of (..., C) each, C at most ``MOST_CODES``. One program per row, which stays
    in registers."""
    *shape, codes = logits[0].shape
    chosen = torch.empty(shape, dtype=torch.int64, device=logits[0].device)
    log_p = torch.empty(shape, dtype=torch.float32, device=logits[0].device)
    parts = [part.reshape(-1, codes).contiguous() for part in logits]
    parts += parts[:1] * (MOST_BRANCHES - len(parts))
    weights = [*scales, *[0.0] * (MOST_BRANCHES - 1 - len(scales))]
    noise = parts[0] if exponential is None else exponential.contiguous()
    block = triton.next_power_of_2(codes)
    branch = {"BRANCHES": len(logits), "NOISY": exponential is not None, "BLOCK": block}
    options = {"num_warps": max(1, min(16, block // 1024)), "enable_fp_fusion": False}
    launch: Any = _image_kernel[(chosen.numel(),)]
    if chosen.numel():
        launch(*parts, *weights, noise, chosen, log_p, codes, **branch, **options)
    return chosen, log_p


@triton.jit
def _image_kernel(
    conditional,
    first,
    second,
    third,
    first_scale,
    second_scale,
    third_scale,
    exponential,
    chosen,
    log_p,
    codes,
    BRANCHES: tl.constexpr,
    NOISY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    code = tl.arange(0, BLOCK)
    valid = code < codes
    at = row * codes + code
    base = tl.load(conditional + at, valid, 0.0).to(tl.float32)
    guided = base
    if BRANCHES > 1:
        guided += first_scale * (base - tl.load(first + at, valid, 0.0).to(tl.float32))
    if BRANCHES > 2:
        guided += second_scale * (base - tl.load(second + at, valid, 0.0).to(tl.float32))
    if BRANCHES > 3:
        guided += third_scale * (base - tl.load(third + at, valid, 0.0).to(tl.float32))
    guided = tl.where(valid, guided, -float("inf"))
    largest = tl.max(guided, axis=0)
    scores = guided - largest - tl.log(tl.sum(tl.exp(guided - largest), axis=0))
    noisy = scores
    if NOISY:
        noisy -= tl.log(tl.maximum(tl.load(exponential + at, valid, 1.0), 1e-30))
    best = tl.minimum(tl.argmax(noisy, axis=0), codes - 1)
    tl.store(chosen + row, best.to(tl.int64))
    tl.store(log_p + row, tl.sum(tl.where(code == best, scores, 0.0), axis=0))

"""The text's side of a step without its logits: head, guidance, choice and confidence by tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from os import environ
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_BRANCHES = 2
DTYPES = (torch.bfloat16, torch.float16)
"""That tensor cores multiply exactly; float32 is as right, but slower than torch."""
_INTERPRETED = environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter multiplies bfloat16 wrongly, so there it is float32 that is multiplied."""


@dataclass(frozen=True)
class Tile:
    """The work of one program: ``rows`` x ``words`` logits by ``warps`` warps, ``depth`` features
    at a time, ``stages`` of which are loaded ahead."""

    rows: int
    words: int
    depth: int
    warps: int
    stages: int


def choose_text(
    hidden: Sequence[Tensor],
    scales: Sequence[float],
    head: Tensor,
    logit_scale: float | None,
    temperature: float,
    exponential: Tensor | None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`.plain.choose_text` of what :func:`.plain.guided` makes of the logits of ``hidden``:
    at most ``MOST_BRANCHES`` of (..., d_model) each.

    ``head``: (V, d_model); the logits have its dtype and are multiplied by ``logit_scale``. They
    are never in memory: each program leaves the best of its words and the log-sum-exp of its
    others, and a second kernel finds the best of the best.
    """
    *shape, features = hidden[0].shape
    words, device = head.shape[0], head.device
    parts = [part.reshape(-1, features).contiguous() for part in hidden]
    rows, guided = len(parts[0]), len(parts) > 1
    chosen = torch.empty(shape, dtype=torch.int64, device=device)
    log_odds = torch.empty(shape, dtype=torch.float32, device=device)
    if not rows:
        return chosen, log_odds
    tile = tile or tile_for(_shared_memory(device), rows > 64, guided)
    tiles, row_tiles = triton.cdiv(words, tile.words), triton.cdiv(rows, tile.rows)
    noisy, scores, rest = torch.empty(3, rows, tiles, dtype=torch.float32, device=device)
    index = torch.empty(rows, tiles, dtype=torch.int32, device=device)
    noise = parts[0] if exponential is None else exponential.contiguous()
    inputs, outputs = (parts[0], parts[-1], head, noise), (noisy, index, scores, rest)
    sizes = (rows, words, features, head.stride(0), tiles, row_tiles)
    factors = (scales[0] if guided else 0.0, logit_scale or 1.0, float(temperature))
    branch = {"GUIDED": guided, "SCALED": logit_scale is not None, "NOISY": exponential is not None}
    block = {"ROWS": tile.rows, "WORDS": tile.words, "DEPTH": tile.depth, "UPCAST": _INTERPRETED}
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False}
    launch: Any = _text_kernel[(row_tiles * tiles,)]
    launch(*inputs, *outputs, *sizes, *factors, **branch, **block, **options)
    width = triton.next_power_of_2(tiles)
    launch = _best_tile_kernel[(rows,)]
    launch(*outputs, chosen, log_odds, tiles, BLOCK=width, enable_fp_fusion=False)
    return chosen, log_odds


@cache
def _shared_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def tile_for(shared: int, many_rows: bool, guided: bool) -> Tile:
    """A tile with as many stages as fit in ``shared`` bytes of shared memory, at most 4."""
    rows, words, depth = 128 if many_rows and not guided else 64, 128, 64
    accumulated = rows * (1 + guided)
    stage = (accumulated + words) * depth * 2
    return Tile(rows, words, depth, accumulated // 16, max(1, min(4, shared // stage)))


@triton.jit(do_not_specialize=["rows", "row_tiles"])
def _text_kernel(
    hidden,
    other,
    head,
    exponential,
    noisy_out,
    index_out,
    score_out,
    rest_out,
    rows,
    words,
    features,
    head_stride,
    tiles,
    row_tiles,
    guidance,
    logit_scale,
    temperature,
    GUIDED: tl.constexpr,
    SCALED: tl.constexpr,
    NOISY: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    program = tl.program_id(0)
    tile = program // row_tiles
    row = program % row_tiles * ROWS + tl.arange(0, ROWS)
    word = tile * WORDS + tl.arange(0, WORDS)
    feature = tl.arange(0, DEPTH)
    row_valid, word_valid = (row < rows)[:, None], (word < words)[None, :]
    hidden_at = row.to(tl.int64)[:, None] * features + feature[None, :]
    head_at = word.to(tl.int64)[None, :] * head_stride + feature[:, None]
    conditional = tl.zeros((ROWS, WORDS), tl.float32)
    unconditional = tl.zeros((ROWS, WORDS), tl.float32)
    for start in range(0, features, DEPTH):
        left = features - start
        weights = tl.load(head + head_at + start, word_valid & (feature < left)[:, None], 0.0)
        mask = row_valid & (feature < left)[None, :]
        values = tl.load(hidden + hidden_at + start, mask, 0.0)
        conditional = _product(values, weights, conditional, UPCAST)
        if GUIDED:
            values = tl.load(other + hidden_at + start, mask, 0.0)
            unconditional = _product(values, weights, unconditional, UPCAST)
    dtype = head.dtype.element_ty
    scores = _as_stored(conditional, logit_scale, SCALED, dtype)
    if GUIDED:
        scores += guidance * (scores - _as_stored(unconditional, logit_scale, SCALED, dtype))
    scores = tl.where(word_valid, scores, -float("inf"))
    noisy = scores
    if NOISY:
        noise_at = row.to(tl.int64)[:, None] * words + word[None, :]
        drawn = tl.load(exponential + noise_at, row_valid & word_valid, 1.0)
        noisy += temperature * -tl.log(tl.maximum(drawn, 1e-30))
    best = tl.argmax(noisy, axis=1)
    is_best = (tl.arange(0, WORDS))[None, :] == best[:, None]
    out, valid = row.to(tl.int64) * tiles + tile, row < rows
    tl.store(noisy_out + out, tl.max(noisy, axis=1), valid)
    tl.store(index_out + out, tl.minimum(tile * WORDS + best, words - 1), valid)
    tl.store(score_out + out, tl.sum(tl.where(is_best, scores, 0.0), axis=1), valid)
    others = tl.where(is_best, -float("inf"), scores)
    largest = _finite(tl.max(others, axis=1))
    total = tl.sum(tl.exp(others - largest[:, None]), axis=1)
    tl.store(rest_out + out, largest + tl.log(total), valid)


@triton.jit
def _product(values, weights, total, UPCAST: tl.constexpr):
    if UPCAST:
        values, weights = values.to(tl.float32), weights.to(tl.float32)
    return tl.dot(values, weights, total, input_precision="ieee")


@triton.jit
def _as_stored(logits, logit_scale, SCALED: tl.constexpr, dtype: tl.constexpr):
    """Rounded as a layer of this dtype would: that is what ties are made of."""
    logits = logits.to(dtype).to(tl.float32)
    if SCALED:
        logits = (logits * logit_scale).to(dtype).to(tl.float32)
    return logits


@triton.jit
def _finite(largest):
    return tl.where(largest == -float("inf"), 0.0, largest)


@triton.jit
def _best_tile_kernel(noisy, index, scores, rest, chosen, log_odds, tiles, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, BLOCK)
    valid, at = tile < tiles, row * tiles + tile
    nothing = -float("inf")
    best = tl.minimum(tl.argmax(tl.load(noisy + at, valid, nothing), axis=0), tiles - 1)
    score = tl.load(scores + at, valid, nothing)
    outside = tl.load(rest + at, valid, nothing)
    others = tl.where(tile == best, nothing, score)
    largest = _finite(tl.maximum(tl.max(others, axis=0), tl.max(outside, axis=0)))
    total = tl.sum(tl.exp(others - largest) + tl.exp(outside - largest), axis=0)
    best_score = tl.sum(tl.where(tile == best, score, 0.0), axis=0)
    tl.store(chosen + row, tl.load(index + row * tiles + best).to(tl.int64))
    tl.store(log_odds + row, best_score - (largest + tl.log(total)))

"""A lossy image tokenizer of 16-pixel patches, its codebook by k-means on given pictures.

It stands in for the image tokenizer of a released checkpoint where none can be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from mmada_parallel.mmp_core.image.tokenizer import ImageTokenizer
from PIL import Image
from torch import Tensor

SIDE = 16


class PatchTokenizer(ImageTokenizer):
    """A code is 16x16 pixels: the nearest entry of a codebook by squared error, and that of the
    next codebook for what is left, stage by stage."""

    downsample, vector_width, pixel_range = SIDE, 3 * SIDE * SIDE, (0.0, 1.0)

    def __init__(self, config, *, operations=torch.nn, dtype=None, device=None):
        super().__init__(config)
        stages, entries = config["stages"], config["entries"]
        self.codebooks = torch.nn.Parameter(torch.zeros(stages, entries, self.vector_width))
        self.codebook_size = entries**stages

    def latents(self, pixels: Tensor) -> Tensor:
        return F.pixel_unshuffle(pixels.to(self.dtype), SIDE)

    def nearest(self, latents: Tensor) -> Tensor:
        vectors = latents.permute(0, 2, 3, 1)
        rest, codes = (
            vectors.flatten(0, 2),
            torch.zeros(vectors.shape[:3].numel(), dtype=torch.int64),
        )
        for codebook in self.codebooks:
            labels = nearest(rest, codebook)
            rest, codes = rest - codebook[labels], codes * len(codebook) + labels
        return codes.view(vectors.shape[:3])

    def vectors(self, codes: Tensor) -> Tensor:
        patches = torch.zeros(*codes.shape, self.vector_width)
        for codebook in reversed(self.codebooks.unbind()):
            patches = patches + codebook[codes % len(codebook)]
            codes = codes // len(codebook)
        return patches.permute(0, 3, 1, 2)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        return F.pixel_shuffle(vectors, SIDE)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    half = codebook.square().sum(1) / 2
    return torch.cat([(half - part @ codebook.T).argmin(1) for part in vectors.split(4096)])


def k_means(vectors: Tensor, codes: int, rounds: int = 4) -> Tensor:
    """(codes, width) centres of vectors (N, width) in random order."""
    centres = vectors[:codes].clone()
    for _ in range(rounds):
        labels = nearest(vectors, centres)
        counts = torch.bincount(labels, minlength=codes)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, labels, vectors)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres


@torch.no_grad()
def trained(
    pictures: Sequence[Image.Image], *, stages: int = 2, entries: int = 1024, patches: int = 48_000
) -> PatchTokenizer:
    """A tokenizer with the k-means of random patches of ``pictures``, which are of the size that a
    model sees; half of the patches are mirrored, and their colour channels change places."""
    rng = np.random.default_rng(0)
    orders = list(permutations(range(3)))
    parts = []
    for number, picture in enumerate([p for p in pictures for _ in range(2 * len(orders))]):
        part = _random_patches(picture, patches // (2 * len(orders) * len(pictures)), rng)
        part = part.view(len(part), 3, SIDE, SIDE)[:, list(orders[number // 2 % len(orders)])]
        parts.append((part.flip(3) if number % 2 else part).flatten(1))
    rest = torch.cat(parts)
    rest = rest[torch.from_numpy(rng.permutation(len(rest)))]
    tokenizer = PatchTokenizer({"stages": stages, "entries": entries})
    for codebook in tokenizer.codebooks:
        codebook.copy_(k_means(rest, entries))
        rest = rest - codebook[nearest(rest, codebook)]
    return tokenizer


def _random_patches(picture: Image.Image, count: int, rng: np.random.Generator) -> Tensor:
    levels = np.asarray(picture.convert("RGB"), np.float32) / 255
    places = rng.integers(0, [s - SIDE + 1 for s in levels.shape[:2]], (count, 2))
    patches = np.stack([levels[y : y + SIDE, x : x + SIDE] for y, x in places])
    return F.pixel_unshuffle(torch.from_numpy(patches).permute(0, 3, 1, 2), SIDE).flatten(1)

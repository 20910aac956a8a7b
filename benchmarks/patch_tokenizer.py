"""A lossy image tokenizer of 16-pixel patches, its codebook by k-means on given pictures.

It stands in for the image tokenizer of a released checkpoint where none can be had.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmada_parallel.mmp_core.image.tokenizer import ImageTokenizer
from PIL import Image
from torch import Tensor

SIDE = 16


class PatchTokenizer(ImageTokenizer):
    """A code is the mean colour of 16x16 pixels and the pattern of brightness about it, each the
    nearest entry of its own codebook by squared error."""

    downsample, vector_width, pixel_range = SIDE, 3 * SIDE * SIDE, (0.0, 1.0)

    def __init__(self, config, *, operations=torch.nn, dtype=None, device=None):
        super().__init__(config)
        self.patterns = torch.nn.Parameter(torch.zeros(config["patterns"], SIDE * SIDE))
        self.colours = torch.nn.Parameter(torch.zeros(config["colours"], 3))
        self.codebook_size = config["colours"] * config["patterns"]

    def latents(self, pixels: Tensor) -> Tensor:
        return F.pixel_unshuffle(pixels.to(self.dtype), SIDE)

    def nearest(self, latents: Tensor) -> Tensor:
        vectors = latents.permute(0, 2, 3, 1)
        colours, patterns = parts(vectors.flatten(0, 2))
        codes = nearest(colours, self.colours) * len(self.patterns) + nearest(
            patterns, self.patterns
        )
        return codes.view(vectors.shape[:3])

    def vectors(self, codes: Tensor) -> Tensor:
        colours = self.colours[codes // len(self.patterns)]
        patterns = self.patterns[codes % len(self.patterns)]
        return (colours[..., None] + patterns[..., None, :]).flatten(3).permute(0, 3, 1, 2)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        return F.pixel_shuffle(vectors, SIDE)


def parts(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3) mean colours and (N, 256) patterns of brightness of patches (N, 768)."""
    patches = vectors.view(len(vectors), 3, -1)
    colours = patches.mean(2)
    return colours, (patches - colours[..., None]).mean(1)


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
    pictures: Sequence[Image.Image],
    *,
    colours: int = 512,
    patterns: int = 1024,
    patches: int = 24_000,
) -> PatchTokenizer:
    """A tokenizer with the k-means of random patches of ``pictures``, which are of the size that a
    model sees."""
    rng = np.random.default_rng(0)
    share = patches // len(pictures)
    vectors = torch.cat([_random_patches(picture, share, rng) for picture in pictures])
    vectors = vectors[torch.from_numpy(rng.permutation(len(vectors)))]
    tokenizer = PatchTokenizer({"colours": colours, "patterns": patterns})
    for codebook, values in zip(
        (tokenizer.colours, tokenizer.patterns), parts(vectors), strict=True
    ):
        codebook.copy_(k_means(values, len(codebook)))
    return tokenizer


def _random_patches(picture: Image.Image, count: int, rng: np.random.Generator) -> Tensor:
    levels = np.asarray(picture.convert("RGB"), np.float32) / 255
    places = rng.integers(0, [s - SIDE + 1 for s in levels.shape[:2]], (count, 2))
    patches = np.stack([levels[y : y + SIDE, x : x + SIDE] for y, x in places])
    return F.pixel_unshuffle(torch.from_numpy(patches).permute(0, 3, 1, 2), SIDE).flatten(1)

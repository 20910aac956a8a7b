"""Pictures as grids of codes: one tokenizer per released variant behind one interface."""

from typing import Protocol, runtime_checkable

import torch

from .amused import AmusedVQ
from .magvit import MagvitV2

__all__ = ["AmusedVQ", "ImageTokenizer", "MagvitV2"]


@runtime_checkable
class ImageTokenizer(Protocol):
    """Turns pixels into codes and back. ``f`` below is ``downsample``.

    ``encode`` and ``decode`` serve inference; the four methods after them are their parts, for
    training a tokenizer and for mixing vectors. Wrong shapes, sides and codes raise InputError.
    """

    downsample: int
    """Pixels per code along each side."""
    codebook_size: int
    """Codes are 0 … codebook_size - 1."""
    vector_width: int
    """Channels of a code's vector."""
    pixel_range: tuple[float, float]
    """The values of black and white."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Float (B, 3, H, W) in ``pixel_range`` to int64 codes (B, H/f, W/f); no gradient."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Integer codes (B, h, w) to float (B, 3, h*f, w*f) clamped to ``pixel_range``; no
        gradient."""

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Float (B, 3, H, W) to what is quantised, (B, vector_width, H/f, W/f)."""

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, vector_width, h, w) to int64 codes (B, h, w); no gradient."""

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        """Integer codes (B, h, w) to their vectors (B, vector_width, h, w)."""

    def decode_vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (B, vector_width, h, w) to float (B, 3, h*f, w*f), not clamped."""

"""Pictures as grids of codes: what every image tokenizer does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotFinite


class ImageTokenizer(nn.Module, ABC):
    """Turns pixels into codes and back. Below, ``f`` is ``downsample``.

    ``downsample``: pixels per code along each side. ``codebook_size``: codes are 0 …
    codebook_size - 1. ``vector_width``: channels of a code's vector. ``pixel_range``: the values of
    black and white. ``bytes_per_pixel``: what decoding a picture holds at its worst moment.

    Pixels, vectors and codes of a wrong shape or range raise ``InputError``. Inputs are cast to the
    dtype of the parameters.
    """

    downsample: int
    codebook_size: int
    vector_width: int
    pixel_range: tuple[float, float]
    bytes_per_pixel: int = 32

    @abstractmethod
    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        """``config``: the parsed ``config.json``. ``operations``: where layers are taken from;
        ``dtype``, ``device``: of their parameters. Raises ``CheckpointError`` naming what in
        ``config`` is not supported."""
        super().__init__()

    @property
    def dtype(self) -> torch.dtype:
        """That of the parameters."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Codes, int64 (B, H/f, W/f), of pixels, float (B, 3, H, W) in ``pixel_range``. Raises
        ``NotFinite``."""
        latents = self.latents(pixels)
        if not latents.isfinite().all():
            raise NotFinite(
                "The image tokenizer reads a picture as values that are not finite numbers: its "
                "weights are damaged; download it again."
            )
        return self.nearest(latents)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Pixels, float (B, 3, h·f, w·f) clamped to ``pixel_range``, of integer codes (B, h, w)."""
        return self.decode_vectors(self.vectors(codes)).clamp(*self.pixel_range)

    @abstractmethod
    def latents(self, pixels: Tensor) -> Tensor:
        """What is quantised, (B, vector_width, H/f, W/f), of pixels (B, 3, H, W); differentiable.
        Sides must be multiples of f."""

    @abstractmethod
    def nearest(self, latents: Tensor) -> Tensor:
        """Codes, int64 (B, h, w), of latents (B, vector_width, h, w)."""

    @abstractmethod
    def vectors(self, codes: Tensor) -> Tensor:
        """Vectors (B, vector_width, h, w) of integer codes (B, h, w)."""

    @abstractmethod
    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Pixels (B, 3, h·f, w·f), not clamped, of vectors (B, vector_width, h, w);
        differentiable."""

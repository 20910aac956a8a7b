"""What the convolutional image tokenizers are built from, and the checks they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


@dataclass(frozen=True)
class Layers:
    """Make layers from injected ``operations`` (torch.nn or comfy.ops), with ``groups`` groups in
    every norm. ``factory``: dtype and device of all."""

    operations: Any
    groups: int
    factory: Mapping[str, Any]

    def conv(self, inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Module:
        options = {"padding": kernel // 2, **options}
        return self.operations.Conv2d(inputs, outputs, kernel, **options, **self.factory)

    def norm(self, channels: int) -> nn.Module:
        return self.operations.GroupNorm(self.groups, channels, eps=1e-6, **self.factory)

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        return self.operations.Linear(inputs, outputs, **self.factory)

    def embedding(self, rows: int, width: int) -> nn.Module:
        return self.operations.Embedding(rows, width, **self.factory)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions and a skip; ``shortcut`` names the 1x1 convolution that the
    skip needs where the width changes."""

    def __init__(self, layers: Layers, inputs: int, outputs: int, shortcut: str):
        super().__init__()
        self.norm1 = layers.norm(inputs)
        self.conv1 = layers.conv(inputs, outputs)
        self.norm2 = layers.norm(outputs)
        self.conv2 = layers.conv(outputs, outputs)
        self.shortcut = shortcut
        self.add_module(shortcut, layers.conv(inputs, outputs, 1) if inputs != outputs else None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        skip = getattr(self, self.shortcut)
        return h + (x if skip is None else skip(x))


class Chain(nn.Module):
    """Runs its parts in the order in which they were added, those of a list one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            for layer in part if isinstance(part, nn.ModuleList) else (part,):
                x = layer(x)
        return x


class LevelNames(NamedTuple):
    """What a checkpoint calls a level's blocks, and the skip's convolution in them."""

    blocks: str
    shortcut: str


class Level(Chain):
    """The ``depth`` residual blocks at one resolution, then ``steps`` to the next, by name."""

    def __init__(
        self,
        layers: Layers,
        inputs: int,
        outputs: int,
        depth: int,
        names: LevelNames,
        **steps: nn.Module | None,
    ):
        super().__init__()
        widths = [inputs, *[outputs] * depth]
        blocks = (ResidualBlock(layers, *pair, names.shortcut) for pair in pairwise(widths))
        self.add_module(names.blocks, nn.ModuleList(blocks))
        for name, step in steps.items():
            self.add_module(name, step)


class Downsample(nn.Module):
    """Halves height and width; the border is padded on the right and at the bottom only."""

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.conv = layers.conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width."""

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.conv = layers.conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def bytes_per_pixel(widths: Sequence[int]) -> int:
    """What decoding holds per pixel at its worst moment, in float32, by the channels of the finest
    level and of the next. That is where the wider one is convolved at full resolution, or in the
    finest level's last block: what came in, and of its own width the block's input, the first
    convolution, its norm and activation. A CPU holds a convolution's input and output twice."""
    fine, coarse = widths[0], max(widths[:2])
    return 4 * max(4 * coarse, coarse + 6 * fine)


def check_floats(name: str, tensor: Tensor, channels: int) -> None:
    """Raise ``InputError`` unless ``tensor`` is a float (B, channels, H, W)."""
    if tensor.ndim != 4 or tensor.shape[1] != channels or not tensor.is_floating_point():
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}; expected floats of "
            f"shape (B, {channels}, H, W)."
        )


def check_pixels(pixels: Tensor, downsample: int) -> None:
    """Raise ``InputError`` unless ``pixels`` is a float (B, 3, H, W), H and W multiples of
    ``downsample``."""
    check_floats("pixels", pixels, 3)
    height, width = pixels.shape[2:]
    if not height or not width or height % downsample or width % downsample:
        raise InputError(
            f"pixels is {width}x{height}; width and height must be positive multiples of "
            f"{downsample}. Fit the picture with pictures.fit_image or pictures.squash_image first."
        )


def check_codes(codes: Tensor, codebook_size: int) -> None:
    """Raise ``InputError`` unless ``codes`` is an integer (B, h, w) with values in
    [0, codebook_size)."""
    if codes.ndim != 3 or codes.is_floating_point() or codes.dtype == torch.bool:
        raise InputError(
            f"codes has shape {tuple(codes.shape)} and type {codes.dtype}; "
            "expected integers of shape (B, h, w)."
        )
    if not codes.numel():
        raise InputError(f"codes is empty, shape {tuple(codes.shape)}; expected a grid.")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
        raise InputError(
            f"codes range over {low}..{high}; expected 0..{codebook_size - 1}. Codes that are "
            "still masked (-1) must be filled before decoding."
        )

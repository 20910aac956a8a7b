"""The VQ autoencoder of aMUSEd, as MMaDA-Parallel-A and Lumina-DiMOO ship it in ``vqvae/``.

Architecture and parameter names follow diffusers' ``VQModel`` (0.34), so that
``vqvae/diffusion_pytorch_model.safetensors`` loads unchanged and strictly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, shown
from .blocks import (
    Chain,
    Downsample,
    Layers,
    Level,
    LevelNames,
    ResidualBlock,
    Upsample,
    bytes_per_pixel,
    check_codes,
    check_floats,
    check_pixels,
)
from .tokenizer import ImageTokenizer

_log = logging.getLogger(__name__)

NAMES = LevelNames("resnets", "conv_shortcut")
DISTANCE_ROWS = 4096
FIXED = {
    "act_fn": "silu",
    "norm_type": "group",
    "in_channels": 3,
    "out_channels": 3,
    "lookup_from_codebook": True,
}
BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
MOST_LEVELS = 8
MOST = {
    "block_out_channels": 8192,
    "layers_per_block": 16,
    "latent_channels": 1024,
    "norm_num_groups": 1024,
    "num_vq_embeddings": 2**22,
    "vq_embed_dim": 1024,
}
"""The largest sizes that are built; released ones are far below."""
IGNORED = {"force_upcast", "scaling_factor", "sample_size"}


@dataclass(frozen=True)
class AmusedConfig:
    """The fields of ``vqvae/config.json`` that shape the network; defaults as in diffusers."""

    block_out_channels: Sequence[int] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 3
    norm_num_groups: int = 32
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None
    mid_block_add_attention: bool = True

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> AmusedConfig:
        """Read the parsed ``vqvae/config.json``. Raises ``CheckpointError`` naming the first value
        that is not supported. An unknown field is ignored with a warning: newer versions of
        diffusers may write one more."""
        names = {field.name for field in fields(cls)}
        known = names | FIXED.keys() | BLOCK_TYPES.keys() | IGNORED
        for name, value in config.items():
            if name in FIXED and value != FIXED[name]:
                raise _refusal(name, value, repr(FIXED[name]))
            if not name.startswith("_") and name not in known:
                _log.warning("vqvae config: %s is unknown here and ignored.", name)
        sizes = cls(**{name: value for name, value in config.items() if name in names})
        sizes._check()
        for name, kind in BLOCK_TYPES.items():
            expected = [kind] * len(sizes.block_out_channels)
            if config.get(name, expected) not in (expected, tuple(expected)):
                raise _refusal(name, config[name], repr(expected))
        return sizes

    def _check(self) -> None:
        widths = self.block_out_channels
        if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= MOST_LEVELS:
            raise _refusal("block_out_channels", widths, f"a list of 1 to {MOST_LEVELS} numbers")
        names = ["layers_per_block", "latent_channels", "norm_num_groups", "num_vq_embeddings"]
        names += [] if self.vq_embed_dim is None else ["vq_embed_dim"]
        numbers = [("block_out_channels", width) for width in widths]
        numbers += [(name, getattr(self, name)) for name in names]
        for name, value in numbers:
            most = MOST[name]
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise _refusal(name, value, f"a whole number from 1 to {most}")
        if any(width % self.norm_num_groups for width in widths):
            groups = f"multiples of norm_num_groups {self.norm_num_groups}"
            raise _refusal("block_out_channels", list(widths), groups)
        if not isinstance(self.mid_block_add_attention, bool):
            raise _refusal("mid_block_add_attention", self.mid_block_add_attention, "true or false")


def _refusal(name: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"vqvae config: {name} is {shown(value)}; only {expected} is supported. "
        "Use an Amused-VQ checkpoint."
    )


class Attention(nn.Module):
    """Single-head attention over all grid cells, with a skip."""

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.group_norm = layers.norm(channels)
        self.to_q = layers.linear(channels, channels)
        self.to_k = layers.linear(channels, channels)
        self.to_v = layers.linear(channels, channels)
        self.to_out = nn.ModuleList([layers.linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)
        h = F.scaled_dot_product_attention(
            self.to_q(h)[:, None], self.to_k(h)[:, None], self.to_v(h)[:, None]
        )[:, 0]
        return x + self.to_out[0](h).transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    """The part at the coarsest grid."""

    def __init__(self, layers: Layers, channels: int, attention: bool):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(layers, channels, channels, NAMES.shortcut) for _ in range(2)
        )
        self.attentions = nn.ModuleList([Attention(layers, channels)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


def _levels(
    layers: Layers, widths: Sequence[int], depth: int, step: type[Downsample | Upsample]
) -> nn.ModuleList:
    name = "downsamplers" if step is Downsample else "upsamplers"
    levels = nn.ModuleList()
    for before, width in pairwise([widths[0], *widths]):
        steps = nn.ModuleList([step(layers, width)] if len(levels) < len(widths) - 1 else [])
        levels.append(Level(layers, before, width, depth, NAMES, **{name: steps}))
    return levels


class Encoder(Chain):
    """Pixels (B, 3, H, W) to (B, latent_channels, H/f, W/f)."""

    def __init__(self, layers: Layers, config: AmusedConfig):
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = layers.conv(3, widths[0])
        self.down_blocks = _levels(layers, widths, config.layers_per_block, Downsample)
        self.mid_block = MidBlock(layers, widths[-1], config.mid_block_add_attention)
        self.conv_norm_out = layers.norm(widths[-1])
        self.activation = nn.SiLU()
        self.conv_out = layers.conv(widths[-1], config.latent_channels)


class Decoder(Chain):
    """(B, latent_channels, h, w) to pixels (B, 3, h·f, w·f)."""

    def __init__(self, layers: Layers, config: AmusedConfig):
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = layers.conv(config.latent_channels, widths[0])
        self.mid_block = MidBlock(layers, widths[0], config.mid_block_add_attention)
        self.up_blocks = _levels(layers, widths, config.layers_per_block + 1, Upsample)
        self.conv_norm_out = layers.norm(widths[-1])
        self.activation = nn.SiLU()
        self.conv_out = layers.conv(widths[-1], 3)


class Codebook(nn.Module):
    """The learnt vectors, one per code."""

    def __init__(self, layers: Layers, size: int, width: int):
        super().__init__()
        self.embedding = layers.embedding(size, width)


class AmusedVQ(ImageTokenizer):
    """Image tokenizer with a learnt codebook, by the ``config.json`` of diffusers' ``VQModel``."""

    pixel_range = (0.0, 1.0)

    def __init__(self, config: Mapping[str, Any], *, operations: Any = nn, **factory: Any):
        super().__init__(config)
        sizes = AmusedConfig.read(config)
        layers = Layers(operations, sizes.norm_num_groups, factory)
        self.downsample = 2 ** (len(sizes.block_out_channels) - 1)
        self.bytes_per_pixel = bytes_per_pixel(sizes.block_out_channels)
        self.codebook_size = sizes.num_vq_embeddings
        self.vector_width = sizes.vq_embed_dim or sizes.latent_channels
        self.encoder = Encoder(layers, sizes)
        self.quant_conv = layers.conv(sizes.latent_channels, self.vector_width, 1)
        self.quantize = Codebook(layers, self.codebook_size, self.vector_width)
        self.post_quant_conv = layers.conv(self.vector_width, sizes.latent_channels, 1)
        self.decoder = Decoder(layers, sizes)

    def latents(self, pixels: Tensor) -> Tensor:
        check_pixels(pixels, self.downsample)
        return self.quant_conv(self.encoder(pixels.to(self.dtype)))

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """As of any tokenizer: the nearest vectors, Euclidean, in float32."""
        check_floats("vectors", latents, self.vector_width)
        every_code = torch.arange(self.codebook_size, device=latents.device)
        codebook = self.quantize.embedding(every_code).float()
        cells = latents.permute(0, 2, 3, 1).reshape(-1, self.vector_width).float()
        codes = [torch.cdist(part, codebook).argmin(1) for part in cells.split(DISTANCE_ROWS)]
        return torch.cat(codes).view(latents.shape[0], *latents.shape[2:])

    def vectors(self, codes: Tensor) -> Tensor:
        """As of any tokenizer; differentiable in the codebook."""
        check_codes(codes, self.codebook_size)
        return self.quantize.embedding(codes.long()).permute(0, 3, 1, 2).contiguous()

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        check_floats("vectors", vectors, self.vector_width)
        return self.decoder(self.post_quant_conv(vectors.to(self.dtype)))

"""MAGVIT-v2 with lookup-free quantisation (showlab/magvitv2), which MMaDA-Parallel-M uses. Each of
13 latent channels gives one bit of the code by its sign, the first channel the highest."""

from __future__ import annotations

from collections.abc import Mapping
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

NAMES = LevelNames("block", "nin_shortcut")
BITS = 13
NORM_GROUPS = 32
MOST_WIDTH = 2048
ENCODER_WIDTHS, ENCODER_DEPTHS = (1, 2, 2, 4, 4), (4, 3, 4, 3, 4)
DECODER_WIDTHS, DECODER_DEPTHS = (1, 1, 2, 2, 4), (4, 4, 3, 4, 3)


class Attention(nn.Module):
    """Single-head attention over all grid cells by 1x1 convolutions, with a skip."""

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.norm = layers.norm(channels)
        self.q = layers.conv(channels, channels, 1)
        self.k = layers.conv(channels, channels, 1)
        self.v = layers.conv(channels, channels, 1)
        self.proj_out = layers.conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Middle(Chain):
    """The part at the coarsest grid."""

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.block_1 = ResidualBlock(layers, channels, channels, NAMES.shortcut)
        self.attn_1 = Attention(layers, channels)
        self.block_2 = ResidualBlock(layers, channels, channels, NAMES.shortcut)


class Encoder(Chain):
    """Pixels (B, 3, H, W) to latents (B, 13, H/16, W/16)."""

    def __init__(self, layers: Layers, base: int):
        super().__init__()
        widths = [base * factor for factor in ENCODER_WIDTHS]
        self.conv_in = layers.conv(3, base)
        self.down = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, ENCODER_DEPTHS, strict=True)):
            step = Downsample(layers, width) if i < len(widths) - 1 else None
            before = widths[max(i - 1, 0)]
            self.down.append(Level(layers, before, width, depth, NAMES, downsample=step))
        self.mid = Middle(layers, widths[-1])
        self.norm_out = layers.norm(widths[-1])
        self.activation = nn.SiLU()
        self.conv_out = layers.conv(widths[-1], BITS)
        self.quant_conv = layers.conv(BITS, BITS, 1)


class Decoder(nn.Module):
    """Latents (B, 13, h, w) to pixels (B, 3, h·16, w·16); levels are stored finest first."""

    def __init__(self, layers: Layers, base: int):
        super().__init__()
        widths = [base * factor for factor in DECODER_WIDTHS]
        last = len(widths) - 1
        self.post_quant_conv = layers.conv(BITS, BITS, 1)
        self.conv_in = layers.conv(BITS, widths[-1])
        self.mid = Middle(layers, widths[-1])
        self.up = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, DECODER_DEPTHS, strict=True)):
            step = Upsample(layers, width) if i else None
            before = widths[min(i + 1, last)]
            self.up.append(Level(layers, before, width, depth, NAMES, upsample=step))
        self.norm_out = layers.norm(widths[0])
        self.conv_out = layers.conv(widths[0], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(x)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class SignQuantizer(nn.Module):
    """Codes to vectors of -1 and +1 and back. Holds no tensors; the released file's constant
    tables are checked on loading and dropped."""

    def codes(self, latents: Tensor) -> Tensor:
        return ((latents > 0).long() << self._places(latents.device).view(-1, 1, 1)).sum(1)

    def vectors(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        bits = (codes.unsqueeze(1) >> self._places(codes.device).view(-1, 1, 1)) & 1
        return (2 * bits - 1).to(dtype)

    @staticmethod
    def _places(device: torch.device | str) -> Tensor:
        return torch.arange(BITS - 1, -1, -1, device=device)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        every_code = torch.arange(2**BITS).view(1, -1, 1)
        tables = {
            "embedding": self.vectors(every_code, torch.float32)[0, :, :, 0].T,
            "power_vals": 2 ** self._places("cpu"),
        }
        for key in [key for key in state_dict if key.startswith(prefix)]:
            expected = tables.get(key.removeprefix(prefix))
            if expected is None:
                unexpected_keys.append(key)
            elif not torch.equal(state_dict[key].cpu().float(), expected.float()):
                error_msgs.append(
                    f"{key} is not the table of a {BITS}-bit lookup-free quantiser; "
                    "use the file of showlab/magvitv2."
                )


class MagvitV2(ImageTokenizer):
    """Image tokenizer with a 13-bit sign code. Of ``config`` only ``ch`` is read, the width of the
    first level, a positive multiple of 32; the released file has the default, 128."""

    pixel_range = (-1.0, 1.0)
    downsample = 2 ** (len(ENCODER_WIDTHS) - 1)
    codebook_size = 2**BITS
    vector_width = BITS

    def __init__(
        self, config: Mapping[str, Any] | None = None, *, operations: Any = nn, **factory: Any
    ):
        super().__init__(config or {})
        base = _read_width(config or {})
        layers = Layers(operations, NORM_GROUPS, factory)
        self.bytes_per_pixel = bytes_per_pixel([base * factor for factor in DECODER_WIDTHS])
        self.encoder = Encoder(layers, base)
        self.decoder = Decoder(layers, base)
        self.quantize = SignQuantizer()

    def latents(self, pixels: Tensor) -> Tensor:
        check_pixels(pixels, self.downsample)
        return self.encoder(pixels.to(self.dtype))

    def nearest(self, latents: Tensor) -> Tensor:
        """As of any tokenizer: by the signs of the channels; 0 counts as -1."""
        check_floats("vectors", latents, self.vector_width)
        return self.quantize.codes(latents)

    def vectors(self, codes: Tensor) -> Tensor:
        """As of any tokenizer: -1 and +1."""
        check_codes(codes, self.codebook_size)
        return self.quantize.vectors(codes.long(), self.dtype)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        check_floats("vectors", vectors, self.vector_width)
        return self.decoder(vectors.to(self.dtype))


def _read_width(config: Mapping[str, Any]) -> int:
    width = config.get("ch", 128)
    valid = isinstance(width, int) and 1 <= width <= MOST_WIDTH
    if not valid or isinstance(width, bool) or width % NORM_GROUPS:
        raise CheckpointError(
            f"magvit config: ch is {shown(width)}; expected a positive multiple of "
            f"{NORM_GROUPS} up to {MOST_WIDTH}. The released file has 128."
        )
    return width

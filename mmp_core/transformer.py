"""The masked-diffusion transformer: LLaDA blocks with full bidirectional attention.

Layers and attention are injected, so that a host (ComfyUI) can pass its own and manage their
memory; plain torch is the default. Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .quantised import WeightOnlyLinear

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, heads, L, head_dim) queries, keys and values to (B, L, heads·head_dim); no mask."""


class RMSNorm(nn.RMSNorm):
    """Rounds to the input's dtype before the gain is applied, as the released code does.

    torch's own rounds once, after; in bf16 every token then differs sooner or later.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x, self.normalized_shape, None, self.eps)


class TorchOperations:
    """Plain torch layers: the default of every ``operations`` argument."""

    Linear, Embedding, RMSNorm = nn.Linear, nn.Embedding, RMSNorm
    Conv2d, GroupNorm = nn.Conv2d, nn.GroupNorm
    QuantisedLinear = WeightOnlyLinear


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention through torch's fused kernels (the default :data:`Attention`)."""
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def rotary_table(length: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """RoPE angles: (2, length, head_dim) float32, cosines then sines (half-rotation layout)."""
    exponent = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    inverse_frequency = 1.0 / (theta**exponent)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * inverse_frequency
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Apply RoPE to ``x`` (B, heads, L, head_dim) in the table's dtype; returns ``x``'s dtype."""
    t = x.to(table.dtype)
    first, second = t.chunk(2, dim=-1)
    return (t * table[0] + torch.cat((-second, first), dim=-1) * table[1]).to(x.dtype)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, both residual (LLaDA's "llama" block)."""

    def __init__(self, config: ModelConfig, operations: Any, attention: Attention, **factory):
        super().__init__()
        self.heads, self.kv_heads = config.n_heads, config.n_kv_heads
        self.attention = attention
        width, kv_width = config.d_model, config.n_kv_heads * config.head_dim

        def linear(inputs: int, outputs: int) -> nn.Module:
            return operations.Linear(inputs, outputs, bias=False, **factory)

        def norm() -> nn.Module:
            return operations.RMSNorm(width, eps=config.rms_norm_eps, **factory)

        self.attn_norm = norm()
        self.q_proj = linear(width, width)
        self.k_proj = linear(width, kv_width)
        self.v_proj = linear(width, kv_width)
        self.attn_out = linear(width, width)
        self.ff_norm = norm()
        self.ff_proj = linear(width, config.mlp_hidden_size)
        self.up_proj = linear(width, config.mlp_hidden_size)
        self.ff_out = linear(config.mlp_hidden_size, width)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """``x``: (B, L, d_model). ``rotary``: from :func:`rotary_table`. Same shape out."""
        h = self.attn_norm(x)
        q = self.q_proj(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.k_proj(h).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v = self.v_proj(h).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        q, k = rotate(q, rotary), rotate(k, rotary)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        x = x + self.attn_out(self.attention(q, k, v))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class MaskedDiffusionTransformer(nn.Module):
    """LLaDA backbone shared by both released variants.

    ``operations`` offers ``Linear``, ``Embedding`` and ``RMSNorm`` with torch's signatures: a class
    or module such as ``comfy.ops.manual_cast``.
    Parameter names carry the released prefix ``model.transformer.``.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        operations: Any = TorchOperations,
        attention: Attention = sdpa_attention,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.config = config
        factory = {"dtype": dtype, "device": device}
        width, vocabulary = config.d_model, config.embedding_size
        transformer = nn.ModuleDict(
            {
                "wte": operations.Embedding(vocabulary, width, **factory),
                "blocks": nn.ModuleList(
                    Block(config, operations, attention, **factory) for _ in range(config.n_layers)
                ),
                "ln_f": operations.RMSNorm(width, eps=config.rms_norm_eps, **factory),
            }
        )
        if not config.weight_tying:
            transformer["ff_out"] = operations.Linear(width, vocabulary, bias=False, **factory)
        self.model = nn.ModuleDict({"transformer": transformer})

    def forward(self, ids: Tensor) -> Tensor:
        """Final normed hidden states (B, L, d_model) of ``ids`` (B, L) int64."""
        return self.layers["ln_f"](self.hidden_states(ids)[-1])

    def hidden_states(self, ids: Tensor, *, every_block: bool = False) -> list[Tensor]:
        """Residual stream (B, L, d_model) after the last block, or before each block and after."""
        config = self.config
        x = self.layers["wte"](ids)
        table = rotary_table(ids.shape[1], config.head_dim, config.rope_theta, ids.device)
        if not config.rope_full_precision:
            table = table.to(x.dtype)
        states = [x]
        for block in self.layers["blocks"]:
            x = block(x, table)
            states.append(x)
        return states if every_block else states[-1:]

    def logits(self, hidden: Tensor, choices: slice = slice(None)) -> Tensor:
        """(…, choices) logits of normed hidden states (…, d_model), in the model's dtype.

        ``choices``: the contiguous part of the vocabulary wanted. A host's own layer may cast or
        stream its weight, so only a plain ``torch.nn.Linear`` is cut; others compute all.
        """
        if self.config.weight_tying:
            logits = F.linear(hidden, self.layers["wte"].weight[choices])
        elif type(self.layers["ff_out"]) is nn.Linear:
            logits = F.linear(hidden, self.layers["ff_out"].weight[choices])
        else:
            logits = self.layers["ff_out"](hidden)[..., choices]
        return logits * self.config.d_model**-0.5 if self.config.scale_logits else logits

    @property
    def layers(self) -> nn.ModuleDict:
        return self.model["transformer"]

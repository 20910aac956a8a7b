"""The masked-diffusion transformer: LLaDA blocks with full bidirectional attention.

Layers and attention are injected, so that a host (ComfyUI) can pass its own and manage their
memory; plain torch is the default. Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .quantised import WeightOnlyLinear
from .rotary import rotary_table, rotate

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, heads, n, head_dim) queries and (B, heads, L, head_dim) keys and values to
(B, n, heads·head_dim); no mask."""

RenewKeysValues = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Keys and values of some positions to those of all, each (B, kv_heads, …, head_dim)."""


class RMSNorm(nn.RMSNorm):
    """Rounds to the input's dtype before the gain is applied, as the released code does. torch's
    own rounds once, after; in bf16 every token then differs sooner or later."""

    def forward(self, x: Tensor) -> Tensor:
        return self.with_gain(x, self.weight)

    def with_gain(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x`` normed, times ``weight`` (d_model,)."""
        normed = F.rms_norm(x, self.normalized_shape, None, self.eps)
        if torch.is_grad_enabled() or weight.dtype != normed.dtype:
            return weight * normed
        return normed.mul_(weight)


class TorchOperations:
    """Plain torch layers: the default of every ``operations`` argument."""

    Linear, Embedding, RMSNorm = nn.Linear, nn.Embedding, RMSNorm
    Conv2d, GroupNorm = nn.Conv2d, nn.GroupNorm
    QuantisedLinear = WeightOnlyLinear

    @staticmethod
    @contextmanager
    def weight_of(layer: nn.Module, like: Tensor) -> Iterator[Tensor]:
        """The weight of a linear or embedding layer, ready to be used with ``like``."""
        if isinstance(layer, WeightOnlyLinear):
            yield layer.dequantised(like.dtype)
        else:
            yield cast(Tensor, layer.weight)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention through torch's fused kernels (the default :data:`Attention`)."""
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


class KeyValueCache:
    """Keys and values of every block for one sequence (B, L), any part of which can be renewed. The
    position ``L`` stands for none: what is written there is never read."""

    def __init__(self) -> None:
        self.blocks: dict[int, Tensor] = {}

    @staticmethod
    def bytes_of(config: ModelConfig, batch: int, length: int, dtype: torch.dtype) -> int:
        """Size of a filled cache for (batch, length) tokens."""
        per_block = 2 * batch * config.n_kv_heads * (length + 1) * config.head_dim
        return config.n_layers * per_block * dtype.itemsize

    def renew(
        self, positions: Tensor | None, block: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All keys and values of ``block``, once those of ``positions`` (B, n), or of all if
        ``None``, are replaced by ``keys`` and ``values``."""
        if positions is None:
            batch, heads, length, head_dim = keys.shape
            if block not in self.blocks:
                self.blocks[block] = keys.new_empty(2, batch, heads, length + 1, head_dim)
            for cached, new in zip(self.blocks[block], (keys, values), strict=True):
                cached[:, :, :-1] = new
            return keys, values
        index = positions[:, None, :, None].expand_as(keys)
        for cached, new in zip(self.blocks[block], (keys, values), strict=True):
            cached.scatter_(2, index, new)
        keys, values = self.blocks[block][:, :, :, :-1]
        return keys, values


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

    def forward(self, x: Tensor, rotary: Tensor, renew: RenewKeysValues | None = None) -> Tensor:
        """(B, n, d_model) of ``x`` (B, n, d_model). ``rotary``: see :func:`rotate`. ``renew`` gives
        the keys and values attended to; by default those of ``x`` alone."""
        x = x + self._attended(self.attn_norm(x), rotary, renew)
        h = self.ff_norm(x)
        if torch.is_grad_enabled():
            return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))
        return x.add_(self.ff_out(F.silu(self.ff_proj(h)).mul_(self.up_proj(h))))

    def _attended(self, h: Tensor, rotary: Tensor, renew: RenewKeysValues | None) -> Tensor:
        q = self.q_proj(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.k_proj(h).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v = self.v_proj(h).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        q, k = rotate(q, rotary), rotate(k, rotary)
        if renew is not None:
            k, v = renew(k, v)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        return self.attn_out(self.attention(q, k, v))


class MaskedDiffusionTransformer(nn.Module):
    """LLaDA backbone shared by both released variants. ``operations`` offers what
    :class:`TorchOperations` does, so that a host may cast or stream weights. Parameter names carry
    the released prefix ``model.transformer.``."""

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
        self.config, self.weight_of = config, operations.weight_of
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

    def forward(
        self, ids: Tensor, *, cache: KeyValueCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Final normed hidden states (B, L, d_model) of ``ids`` (B, L) int64.

        ``cache``: filled for later calls. ``positions``: (B, n) int64; only these are computed
        (B, n, d_model), with the cache's keys and values for the others, and renewed in it. ``L``
        stands for no position: what is computed there means nothing.
        """
        config, length = self.config, ids.shape[1]
        table = rotary_table(length, config.head_dim, config.rope_theta, ids.device)
        if positions is not None:
            if cache is None:
                raise ValueError("positions need the cache that holds the others' keys and values.")
            read = positions.clamp_max(length - 1)
            ids, table = ids.gather(1, read), table[:, read].unsqueeze(2)
        x = self.layers["wte"](ids)
        if not config.rope_full_precision:
            table = table.to(x.dtype)
        for index, block in enumerate(self.blocks):
            renew = None if cache is None else partial(cache.renew, positions, index)
            x = block(x, table, renew)
        return self.layers["ln_f"](x)

    def logits(self, hidden: Tensor, choices: slice = slice(None)) -> Tensor:
        """(…, choices) logits of normed hidden states (…, d_model), in the model's dtype.
        ``choices``: the contiguous part of the vocabulary wanted."""
        with self.head(hidden, choices) as weight:
            logits = F.linear(hidden, weight)
        return logits if self.logit_scale is None else logits * self.logit_scale

    @contextmanager
    def head(self, like: Tensor, choices: slice) -> Iterator[Tensor]:
        """(choices, d_model): the weight that :meth:`logits` multiplies ``like`` with."""
        layer = self.layers["wte" if self.config.weight_tying else "ff_out"]
        with self.weight_of(layer, like) as weight:
            yield weight[choices]

    @property
    def logit_scale(self) -> float | None:
        """What logits are multiplied by, if anything."""
        return self.config.d_model**-0.5 if self.config.scale_logits else None

    @property
    def layers(self) -> nn.ModuleDict:
        """Embedding, blocks, last norm and head by the released names."""
        return cast(nn.ModuleDict, self.model["transformer"])

    @property
    def blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.layers["blocks"])

    @property
    def dtype(self) -> torch.dtype:
        """That of hidden states and logits."""
        return cast(Tensor, self.layers["ln_f"].weight).dtype

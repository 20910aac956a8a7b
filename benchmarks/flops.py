"""Floating-point operations of what the sampler runs, counted from shapes."""

from __future__ import annotations

from typing import Any

from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer
from torch import Tensor


def forward_flop(config: ModelConfig, queries: int, keys: int | None = None) -> float:
    """Multiply-adds of the blocks, times two, for one sequence; no logits.

    ``queries``: positions computed. ``keys``: positions they attend to, by default as many.
    """
    keys = queries if keys is None else keys
    width, kv_width = config.d_model, config.n_kv_heads * config.head_dim
    linear = 2 * width * (width + kv_width) + 3 * width * config.mlp_hidden_size
    return 2.0 * config.n_layers * queries * (linear + 2 * keys * width)


class FlopCounter:
    """Counts what a transformer does from now on.

    ``forwards``: calls. ``blocks``: FLOPs of the blocks, attention over all keys included.
    ``head``: FLOPs of the logits. ``config``: count as for a model of these sizes, instead of the
    transformer's own.
    """

    def __init__(self, transformer: MaskedDiffusionTransformer, config: ModelConfig | None = None):
        self.config = config or transformer.config
        self.reset()
        transformer.register_forward_hook(self._count_blocks)
        logits = transformer.logits

        def counted(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            scores = logits(hidden, *args, **kwargs)
            self.head += 2.0 * scores.numel() * self.config.d_model
            return scores

        transformer.logits = counted

    @property
    def total(self) -> float:
        return self.blocks + self.head

    def reset(self) -> None:
        self.forwards, self.blocks, self.head = 0, 0.0, 0.0

    def _count_blocks(
        self, module: MaskedDiffusionTransformer, inputs: tuple[Tensor], hidden: Tensor
    ) -> None:
        batch, keys = inputs[0].shape
        self.forwards += 1
        self.blocks += batch * forward_flop(self.config, hidden.shape[1], keys)

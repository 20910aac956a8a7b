"""Floating-point operations of what the sampler runs, counted from shapes."""

from __future__ import annotations

from typing import Any

from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer
from torch import Tensor


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
        self.blocks += batch * self.config.forward_flop(hidden.shape[1], keys)

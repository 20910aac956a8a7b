"""Models with random weights in the shape of the released variant A, or smaller, and prompts.

Times do not depend on the weights' values; which tokens are chosen, and so how many steps a level
that adapts to the model takes, does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer
from mmada_parallel.mmp_core.state import Prompt, TokenState
from mmada_parallel.mmp_core.variants.base import Variant
from mmada_parallel.mmp_core.variants.mmada_parallel_a import LayoutA, MMaDAParallelA

RELEASED = {
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "embedding_size": 134656,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
}
TINY = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 96}
INSTRUCTION = 60


class NoTokenizer:
    """Knows no token, so that the layout takes the released ids."""

    unk_token_id = None

    def convert_tokens_to_ids(self, name: str) -> None:
        return None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(range(1000, 1042))}


@dataclass(frozen=True)
class RandomModel:
    """What the sampler needs of a model."""

    transformer: MaskedDiffusionTransformer
    layout: LayoutA
    variant: Variant
    device: torch.device

    @classmethod
    def of(
        cls, sizes: Mapping[str, int], device: torch.device, dtype: torch.dtype, std: float = 0.02
    ) -> RandomModel:
        """``sizes``: what differs from the released model. ``std``: of the weights."""
        config = ModelConfig(**{**RELEASED, **sizes})
        transformer = MaskedDiffusionTransformer(config, device=device, dtype=dtype)
        generator = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            for weight in transformer.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=std, generator=generator)
        variant = MMaDAParallelA()
        layout = variant.layout(NoTokenizer(), {"mask_token_id": config.mask_token_id})
        return cls(transformer.requires_grad_(False).eval(), layout, variant, device)

    def prompt(self, grid: int, text: int, batch: int = 1) -> Prompt:
        """An instruction, an input picture of ``grid`` x ``grid`` codes, and a masked answer of
        as many and ``text`` words."""
        generator = torch.Generator().manual_seed(1)
        words = torch.randint(0, 126000, (batch, INSTRUCTION), generator=generator)
        codes = self.layout.codebook_size
        picture = torch.randint(0, codes, (batch, grid, grid), generator=generator)
        start = TokenState.masked(batch, text, (grid, grid))
        return Prompt(words, words[:, :42], picture, start).to(self.device)

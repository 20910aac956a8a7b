"""The weights with which training from nothing begins."""

from __future__ import annotations

import torch
from torch import nn

from ...mmp_core.model.transformer import MaskedDiffusionTransformer


def initialise(model: MaskedDiffusionTransformer, seed: int) -> None:
    """Fill ``model`` with normal(0, 0.02) and gains of 1, residual outputs scaled down by depth."""
    rng = torch.Generator().manual_seed(seed)
    scale = (2 * model.config.n_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            residual = name.endswith(("attn_out.weight", ".ff_out.weight")) and ".blocks." in name
            nn.init.normal_(parameter, std=0.02 * (scale if residual else 1.0), generator=rng)

"""Numbers that are none: seen where they arise, and named by the layer and by what to do."""

from __future__ import annotations

from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import NotFinite
from .transformer import MaskedDiffusionTransformer


def refuse_not_finite(transformer: MaskedDiffusionTransformer, ids: Tensor) -> NoReturn:
    """Raise ``NotFinite`` for hidden states, which ``transformer`` gave for ``ids`` (B, L), that
    are not finite: every token chosen by them would be wrong, in float16 a row of "!". The layer is
    found by running the transformer once more."""
    name, layer = _first_layer(transformer, ids)
    if layer is not None and not _weights_finite(layer):
        raise NotFinite(
            f"The weights of {name} have values that are not finite numbers: the checkpoint or an "
            "adapter is damaged; download it again."
        )
    advice = "the checkpoint or an adapter does not work in this precision"
    if transformer.dtype == torch.float16:
        advice = "float16 is too small for this checkpoint: use bfloat16 (dtype bf16) or float32"
    raise NotFinite(f"{name} gives values that are not finite numbers: {advice}.")


def _first_layer(
    transformer: MaskedDiffusionTransformer, ids: Tensor
) -> tuple[str, nn.Module | None]:
    """The first layer whose result is not finite, and its name; the transformer's where none is."""
    layers: dict[str, nn.Module] = {"the embedding": transformer.layers["wte"]}
    layers |= {f"block {i}": block for i, block in enumerate(transformer.blocks)}
    layers["the final norm"] = transformer.layers["ln_f"]
    spoilt: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if not output.isfinite().all():
                spoilt.append(name)

        return look

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            transformer(ids)
    finally:
        for handle in handles:
            handle.remove()
    return (spoilt[0], layers[spoilt[0]]) if spoilt else ("the transformer", None)


def _weights_finite(layer: nn.Module) -> bool:
    stored = chain(layer.parameters(), layer.buffers())
    return all(bool(weight.float().isfinite().all()) for weight in stored)

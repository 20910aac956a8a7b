"""What is trained of a transformer: low-rank adapters, or all of its weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...mmp_core.errors import InputError
from ...mmp_core.model.config import BLOCK_LAYERS
from ...mmp_core.model.lora import Adapter, LayerShape, adaptable_layers
from ...mmp_core.model.transformer import MaskedDiffusionTransformer


class Policy(Protocol):
    """What is trained of a transformer, which computes with it from construction on."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """What the optimizer updates."""

    def reference(self) -> AbstractContextManager:
        """Inside, the transformer computes as before training. No gradients may be taken there."""

    def state_dict(self) -> dict[str, Tensor]:
        """What :meth:`load_state_dict` continues from, bit for bit."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any: ...

    def detach(self) -> None:
        """Leave the transformer, which trains no more."""


class LoRA(Adapter):
    """Adapters to train on the chosen linear layers of a frozen transformer, attached at once.

    A is Kaiming uniform, drawn from ``seed``, and B zero, so that the start is exactly the base.
    What is added is ``strength · alpha / rank · B(A x)``; ``alpha``: default ``rank``. ``layers``:
    see :func:`adaptable_layers`. ``device``: where the transformer computes (default: where its
    embedding is, which a host may move). Parameters stay in ``dtype`` and are cast to that of the
    activations on use. Base weights get no gradients. A context manager: :meth:`detach` at its end.

    Raises ``InputError`` for a rank below 1 or layers that cannot be adapted.
    """

    def __init__(
        self,
        transformer: MaskedDiffusionTransformer,
        *,
        rank: int = 16,
        alpha: float | None = None,
        layers: Collection[str] = BLOCK_LAYERS,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 0,
        strength: float = 1.0,
    ):
        if rank < 1:
            raise InputError(f"The rank is {rank}: it must be 1 or more.")
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        shapes = {
            name: LayerShape(layer.in_features, layer.out_features, rank)
            for name, layer in adaptable_layers(transformer, layers).items()
        }
        device = device or transformer.layers["wte"].weight.device
        with torch.inference_mode(False):
            super().__init__(shapes, dtype=dtype, device=device)
            self._initialise(seed)
        transformer.requires_grad_(False)
        self._bypass = self.attach(transformer, strength * self.alpha / rank)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        for name, low_rank in self.low_ranks.items():
            shape = self.shapes[name]
            start = torch.empty(shape.rank, shape.inputs)
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=rng)
            low_rank.lora_A.weight.copy_(start)
            nn.init.zeros_(low_rank.lora_B.weight)

    def reference(self) -> AbstractContextManager:
        return self._bypass.suspended()

    def detach(self) -> None:
        self._bypass.remove()

    def __enter__(self) -> LoRA:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()


class FullWeights:
    """All weights of a small model that is not quantised, with a copy of them as they were.

    Raises ``InputError`` for a quantised model.
    """

    def __init__(self, transformer: MaskedDiffusionTransformer):
        refuse_quantised(transformer)
        self._transformer = transformer.requires_grad_(True)
        self._kept = {name: p.detach().clone() for name, p in transformer.named_parameters()}

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self._transformer.named_parameters()

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._transformer.named_parameters():
            parameter.data, self._kept[name] = self._kept[name], parameter.data

    def state_dict(self) -> dict[str, Tensor]:
        return self._transformer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any:
        return self._transformer.load_state_dict(state_dict)

    def detach(self) -> None:
        self._transformer.requires_grad_(False)


def refuse_quantised(transformer: MaskedDiffusionTransformer) -> None:
    """Raises ``InputError`` for a model that cannot be trained as a whole."""
    if any(_quantised(layer) for layer in adaptable_layers(transformer).values()):
        raise InputError(
            "A quantised model cannot be trained as a whole: train adapters, or load the "
            "checkpoint that is not quantised."
        )


def _quantised(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Linear) or layer.weight.dtype.itemsize == 1

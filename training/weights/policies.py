"""What is trained of a transformer: low-rank adapters, or all of its weights."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from ...mmp_core.checkpoint.adapters import layer_of_part
from ...mmp_core.checkpoint.tensors import holds_values
from ...mmp_core.errors import InputError, shown
from ...mmp_core.model.config import BLOCK_LAYERS
from ...mmp_core.model.lora import Adapter, AttachedAdapter, LayerShape, adaptable_layers
from ...mmp_core.model.transformer import MaskedDiffusionTransformer
from ...mmp_core.outside import check_kind, checked_count


class Policy(ABC):
    """What is trained of a transformer, which computes with it from construction on.

    ``sharded``: no process has all weights, so that forwards need all processes. ``start``: a
    fingerprint of the weights it begins with, where those are not the transformer's own. ``scale``:
    what the result of an adapter is multiplied by.
    """

    sharded = False
    start = ""
    scale = 1.0

    @abstractmethod
    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """What the optimizer updates."""

    @abstractmethod
    def reference(self) -> AbstractContextManager:
        """Inside, the transformer computes as before training. No gradients may be taken there."""

    def gathered(self) -> AbstractContextManager:
        """Inside, forwards need no other process."""
        return nullcontext()

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What :meth:`load_state_dict` continues from, bit for bit."""

    @abstractmethod
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any: ...

    @abstractmethod
    def detach(self) -> None:
        """Leave the transformer, which trains no more."""


class LoRA(Adapter, Policy):
    """Adapters to train on the chosen linear layers of a frozen transformer, attached at once.

    A is Kaiming uniform, drawn from ``seed``, and B zero, so that training begins exactly at the
    base; or both are those of the adapter ``start``, as :meth:`state_dict` names them. What is
    added is ``alpha / rank · B(A x)``; ``alpha``: default ``rank``. ``dora``: with magnitudes,
    which begin as the lengths of the weights' rows, or are those of ``start``. ``layers``: see
    :func:`adaptable_layers`. ``device``: where the transformer computes (default: where its
    embedding is, which a host may move). Parameters stay in ``dtype`` and are cast to that of the
    activations on use. Base weights get no gradients. A context manager: :meth:`detach` at its end.

    Raises ``InputError`` for a rank below 1, layers that cannot be adapted, or a ``start`` of
    other layers or another rank.
    """

    def __init__(
        self,
        transformer: MaskedDiffusionTransformer,
        *,
        rank: int = 16,
        alpha: float | None = None,
        dora: bool = False,
        layers: Collection[str] = BLOCK_LAYERS,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 0,
        start: Mapping[str, Tensor] | None = None,
    ):
        _check_transformer(transformer)
        check_kind(start, Mapping | None, "start", "the tensors of an adapter")
        if isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1:
            raise InputError(f"The rank is {shown(rank)}: it must be 1 or more.")
        if alpha is not None and (not isinstance(alpha, Real) or not math.isfinite(alpha)):
            raise InputError(f"alpha is {shown(alpha)}; expected a number.")
        seed = checked_count(seed, "seed", 0, 2**64 - 1)
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        self.dora = dora = dora if start is None else is_dora(start)
        adapted = adaptable_layers(transformer, layers)
        shapes = {
            name: LayerShape(layer.in_features, layer.out_features, rank, dora)
            for name, layer in adapted.items()
        }
        device = device or next(transformer.parameters()).device
        self.scale = scale = self.alpha / rank
        self._attached_start: AttachedAdapter | None = None
        with torch.inference_mode(False):
            super().__init__(shapes, dtype=dtype, device=device)
            self._initialise(seed)
            self._adapted = adapted
            self._like = torch.empty(0, dtype=transformer.dtype, device=device)
            if dora and start is None:
                self._measure()
            if start is not None:
                self._begin_with(start)
                before = Adapter(shapes, dtype=dtype, device=device).requires_grad_(False)
                before.load_state_dict(self.state_dict())
                self._attached_start = before.attach(transformer, scale=scale)
                self._attached_start.active = False
        transformer.requires_grad_(False)
        self._attached = self.attach(transformer, scale=scale)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        for name, low_rank in self.low_ranks.items():
            shape = self.shapes[name]
            start = torch.empty(shape.rank, shape.inputs)
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=rng)
            low_rank.lora_A.weight.copy_(start)
            nn.init.zeros_(low_rank.lora_B.weight)

    @torch.no_grad()
    def _measure(self) -> None:
        for name, low_rank in self.low_ranks.items():
            assert low_rank.lora_magnitude_vector is not None
            squares = low_rank.squares(self._adapted[name], self._inputs(name))
            low_rank.lora_magnitude_vector.copy_(squares.sqrt())

    def _inputs(self, name: str) -> Tensor:
        return self._like.new_empty(0, self.shapes[name].inputs)

    def dora_scales(self) -> dict[str, Tensor]:
        """Of each layer with magnitudes, (outputs, 1) float32: ``<layer>.dora_scale`` as ComfyUI's
        loader wants it. It divides by the lengths of the rows of W, where DoRA (arXiv 2402.09353)
        divides by those of W + BA."""
        scales = {}
        for name, low_rank in self.low_ranks.items() if self.dora else ():
            layer, like = self._adapted[name], self._inputs(name)
            lengths = low_rank.squares(layer, like).sqrt()
            scale = low_rank.row_scale(layer, like, self.scale) * lengths
            scales[f"{name}.dora_scale"] = scale[:, None]
        return scales

    def _begin_with(self, start: Mapping[str, Tensor]) -> None:
        if shapes_of(self.state_dict()) != shapes_of(start):
            raise InputError(
                "The adapter to train further does not fit: expected one of this model with one "
                "rank and the same layers in every block."
            )
        self.load_state_dict(start)
        digest = hashlib.sha256()
        for name in sorted(start):
            digest.update(start[name].float().cpu().numpy().tobytes())
        self.start = digest.hexdigest()

    @contextmanager
    def reference(self) -> Iterator[None]:
        with self._attached.switched(False):
            if self._attached_start is None:
                yield
            else:
                with self._attached_start.switched(True):
                    yield

    def detach(self) -> None:
        self._attached.remove()
        if self._attached_start is not None:
            self._attached_start.remove()

    def __enter__(self) -> LoRA:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Of a policy's weights, to compare them with another's."""
    return {name: value.shape for name, value in state.items()}


def check_weights(state: Mapping[str, Any], name: str) -> None:
    """Raises ``ValueError`` for what no training could have saved: not tensors of finite numbers
    that can be written to. ``name``: what has them."""
    for key, value in state.items():
        usable = holds_values(value) and value.is_floating_point() and value.is_contiguous()
        if (
            not usable
            or not (value if value.dtype.itemsize > 1 else value.float()).isfinite().all()
        ):
            raise ValueError(f"{name} has {key} {shown(value)}")


def rank_and_layers(state: Mapping[str, Tensor]) -> tuple[int, tuple[str, ...]]:
    """Of the adapter that :meth:`LoRA.state_dict` names so, to train it further."""
    rank = max(tensor.shape[0] for name, tensor in state.items() if ".lora_A." in name)
    return rank, tuple(sorted({layer_of_part(name).rpartition(".")[2] for name in state}))


def is_dora(state: Mapping[str, Tensor]) -> bool:
    """Whether such an adapter has magnitudes."""
    return any(name.endswith("lora_magnitude_vector") for name in state)


class FullWeights(Policy):
    """All weights of a small model that is not quantised, with a copy of them as they were.

    Raises ``InputError`` for a quantised model.
    """

    def __init__(self, transformer: MaskedDiffusionTransformer):
        _check_transformer(transformer)
        refuse_quantised(transformer)
        self._transformer = transformer.requires_grad_(True)
        self._before = {name: self._copy(p) for name, p in transformer.named_parameters()}

    def _copy(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().clone()

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
            parameter.data, self._before[name] = self._before[name], parameter.data

    def state_dict(self) -> dict[str, Tensor]:
        return self._transformer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any:
        return self._transformer.load_state_dict(state_dict)

    def detach(self) -> None:
        self._transformer.requires_grad_(False)


def _check_transformer(transformer: Any) -> None:
    check_kind(
        transformer, MaskedDiffusionTransformer, "transformer", "that of a loaded checkpoint"
    )


def refuse_quantised(transformer: MaskedDiffusionTransformer) -> None:
    """Raises ``InputError`` for a model that cannot be trained as a whole."""
    layers = adaptable_layers(transformer).values()
    if any(not isinstance(x, nn.Linear) or x.weight.dtype.itemsize == 1 for x in layers):
        raise InputError(
            "A quantised model cannot be trained as a whole: train adapters, or load the "
            "checkpoint that is not quantised."
        )

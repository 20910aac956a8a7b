"""What turns gradients into updates, and the running average of what they update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...mmp_core.errors import InputError
from .settings import RunSettings

Parameters = Mapping[str, nn.Parameter]
_BETAS = (0.9, 0.95)
_log = logging.getLogger(__name__)


def adamw(parameters: Parameters, settings: RunSettings) -> list[Optimizer]:
    return [
        torch.optim.AdamW(
            parameters.values(),
            lr=settings.learning_rate,
            betas=_BETAS,
            weight_decay=settings.weight_decay,
        )
    ]


def adamw8bit(parameters: Parameters, settings: RunSettings) -> list[Optimizer]:
    """AdamW with moments of one byte, by bitsandbytes; plain where that is not installed or has
    nothing for the device."""
    try:
        make = import_module("bitsandbytes.optim").AdamW8bit
    except Exception as error:  # missing, or broken for this GPU
        _log.warning("MMaDA-Parallel: adamw8bit is plain adamw here: bitsandbytes (%s).", error)
        return adamw(parameters, settings)
    if any(p.device.type != "cuda" for p in parameters.values()):
        _log.warning("MMaDA-Parallel: adamw8bit is plain adamw here: it needs an NVIDIA GPU.")
        return adamw(parameters, settings)
    return [
        make(
            parameters.values(),
            lr=settings.learning_rate,
            betas=_BETAS,
            weight_decay=settings.weight_decay,
        )
    ]


def muon(parameters: Parameters, settings: RunSettings) -> list[Optimizer]:
    """Orthogonalised updates for the blocks' matrices (torch >= 2.9), AdamW for all else."""
    if not hasattr(torch.optim, "Muon"):
        raise InputError("The optimizer muon needs torch >= 2.9: use adamw, or update torch.")
    matrices = {n: p for n, p in parameters.items() if p.ndim == 2 and ".blocks." in n}
    others = {n: p for n, p in parameters.items() if n not in matrices}
    orthogonal = torch.optim.Muon(
        matrices.values(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [*(adamw(others, settings) if others else ()), orthogonal]


OPTIMIZERS: Mapping[str, Callable[[Parameters, RunSettings], list[Optimizer]]] = {
    "adamw": adamw,
    "muon": muon,
    "adamw8bit": adamw8bit,
}


class Average:
    """Exponential moving average of parameters (EMA): what is kept of them falls by ``decay`` a
    step, less at the beginning."""

    def __init__(self, parameters: Parameters, decay: float):
        self._parameters, self._decay = parameters, decay
        self._values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after ``step`` steps."""
        decay = min(self._decay, step / (step + 10))
        for name, value in self._values.items():
            value.lerp_(self._parameters[name], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters have their average values."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._values[name] = self._values[name], parameter.data

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._values)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in self._values.items():
            value.copy_(state[name])

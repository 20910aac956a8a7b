"""Where a run is computed: in this process alone, or in several that train together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ...mmp_core.errors import InputError, shortened

if TYPE_CHECKING:
    from accelerate import Accelerator

_PATIENCE = timedelta(hours=12)
"""How long processes wait for the first one, which alone tokenises a dataset."""


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


class Ranks:
    """The only process: number ``index`` of ``count``."""

    index, count = 0, 1

    @property
    def first(self) -> bool:
        return self.index == 0

    def first_one_first(self) -> AbstractContextManager:
        """Inside, the first process is done before the others begin."""
        return nullcontext()

    def gather(self, items: list[Any]) -> list[Any]:
        """The lists of all processes as one."""
        return items

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise over all processes."""
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place; a missing one counts as 0."""

    def close(self) -> None:
        """Wait for the others, and part."""


class AcceleratedRanks(Ranks):
    """Processes that train together through Hugging Face Accelerate."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.index, self.count = accelerator.process_index, accelerator.num_processes

    def first_one_first(self) -> AbstractContextManager:
        return self.accelerator.main_process_first()

    def gather(self, items: list[Any]) -> list[Any]:
        from accelerate.utils import gather_object

        return gather_object(items)

    def sum(self, values: list[float]) -> list[float]:
        device = self.accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return self._summed(torch.tensor(values, dtype=dtype, device=device)).tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """FSDP has already averaged the gradients of sharded parameters."""
        gradients: list[Tensor] = []
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            elif is_sharded(p):
                p.grad.mul_(self.count)
            gradients.append(p.grad)
        if is_sharded(gradients[0]):
            return
        total = self._summed(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(
            gradients, total.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def close(self) -> None:
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _summed(self, tensor: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(tensor, reduction="sum"))


def launched_ranks(device: str) -> Ranks:
    """The processes that ``accelerate launch`` (or ``torchrun``) began, each on ``device``.

    Raises ``InputError`` where accelerate is missing, or the processes do not find each other.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        return Ranks()
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError:
        raise InputError(
            "Several processes train together through accelerate: pip install accelerate."
        ) from None
    patient = InitProcessGroupKwargs(timeout=_PATIENCE)
    try:
        _check_rank(os.environ)
        accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[patient])
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise InputError(
            f"The processes that train together do not find each other ({shortened(str(error))}): "
            "start them by accelerate launch or torchrun, with its variables of the environment "
            "as it sets them."
        ) from None
    return AcceleratedRanks(accelerator)


def _check_rank(variables: Mapping[str, str]) -> None:
    """Raises ``ValueError`` for a rank that there is not: its process would wait for others that
    never come."""
    rank, count = (int(variables.get(name) or 0) for name in ("RANK", "WORLD_SIZE"))
    if count and not 0 <= rank < count:
        raise ValueError(f"RANK is {rank}, and WORLD_SIZE {count}")

"""The processes that train together, through Hugging Face Accelerate; or this one alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


class Ranks:
    """``index`` of ``count`` processes; of ``None``, the only one."""

    def __init__(self, accelerator: Accelerator | None = None):
        self.accelerator = accelerator
        self.index = accelerator.process_index if accelerator else 0
        self.count = accelerator.num_processes if accelerator else 1

    @property
    def first(self) -> bool:
        return self.index == 0

    def gather(self, items: list[Any]) -> list[Any]:
        """The lists of all processes as one."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise over all processes."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        return self.accelerator.reduce(tensor, reduction="sum").tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place; a missing one counts as 0.

        FSDP has already averaged those of sharded parameters.
        """
        if self.count == 1:
            return
        parameters = list(parameters)
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            elif is_sharded(p):
                p.grad.mul_(self.count)
        if is_sharded(parameters[0]):
            return
        gradients: list[Tensor] = [p.grad for p in parameters]
        flat = torch.cat([g.flatten() for g in gradients])
        parts = self.accelerator.reduce(flat, reduction="sum").split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def close(self) -> None:
        """Wait for the others, and part."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()

    @property
    def _device(self) -> torch.device:
        return self.accelerator.device

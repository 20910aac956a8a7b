"""All weights of a model, sharded over the processes that train them (PyTorch's FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ...mmp_core.errors import InputError, shown
from ...mmp_core.model.transformer import MaskedDiffusionTransformer
from ...mmp_core.outside import field
from ..loop.folder import MOST_STEPS
from ..loop.ranks import is_sharded
from .policies import FullWeights, check_weights, refuse_quantised

_MOMENTS = {"AdamW": ("exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}
"""Of torch's optimizers, of the shape of their parameter; bitsandbytes packs its own."""
_PACKED_BLOCKS = (256, 2048)
"""Numbers that share a scale there, in newer and in older versions."""

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class ShardedWeights(FullWeights):
    """All weights, of which each process holds a share, with gradients and optimizer.

    Weights are stored, averaged and updated in float32 and computed in the dtype they came in.
    Needs an initialised process group, and that all processes call everything here alike.

    Rollouts gather all weights once (:meth:`gathered`), since processes then run unequal numbers of
    forwards; otherwise they are gathered block by block.

    Raises ``InputError`` for a quantised model, or where PyTorch lacks FSDP2.
    """

    sharded = True

    def __init__(self, transformer: MaskedDiffusionTransformer, device: torch.device):
        refuse_quantised(transformer)
        try:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
        except ImportError:
            raise InputError(
                "Training all weights in several processes needs torch >= 2.6."
            ) from None
        ranks = torch.distributed.get_world_size()
        dtype = transformer.dtype
        options: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, (ranks,)),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=None if dtype == torch.float32 else dtype,
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,
            ),
        }
        transformer.requires_grad_(True)
        for block in cast(nn.ModuleList, transformer.layers["blocks"]):
            fully_shard(block.float(), **options)
        self._root = fully_shard(transformer.float(), **options)
        self._shards = [m for m in transformer.modules() if isinstance(m, FSDPModule)]
        super().__init__(transformer)

    def _copy(self, parameter: nn.Parameter) -> Tensor:
        return _local(parameter).detach().clone()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        self._root.set_reshard_after_forward(False)
        for shard in self._shards:
            shard.unshard()
        try:
            yield
        finally:
            for block in self._shards[1:]:
                block.set_reshard_after_forward(True)
            self._reshard()

    @torch.no_grad()
    def _swap(self) -> None:
        self._reshard()
        for name, parameter in self._transformer.named_parameters():
            local = _local(parameter)
            now = local.clone()
            local.copy_(self._before[name])
            self._before[name] = now

    def _reshard(self) -> None:
        for shard in self._shards:
            shard.reshard()

    def state_dict(self) -> dict[str, Tensor]:
        """Whole weights, on the CPU of every process."""
        self._reshard()
        return {name: whole(p) for name, p in self._transformer.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        self._reshard()
        for name, parameter in self._transformer.named_parameters():
            parameter.copy_(share_of(state_dict[name], parameter))


def _local(tensor: Tensor) -> Tensor:
    """This process's share of a sharded tensor."""
    return cast("DTensor", tensor).to_local()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered from all processes, on the CPU; another as it is."""
    if is_sharded(tensor):
        return cast("DTensor", tensor.detach()).full_tensor().cpu()
    return tensor


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor``, sharded as ``like`` is."""
    from torch.distributed.tensor import distribute_tensor

    model = cast("DTensor", like)
    return distribute_tensor(tensor.to(like.device), model.device_mesh, model.placements)


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state with :func:`whole` tensors."""
    state = optimizer.state_dict()
    state["state"] = {
        index: {name: whole(value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments that :func:`whole_optimizer` gave, each process its share; rates and
    the like stay the optimizer's own. Raises ``ValueError``, ``TypeError``, ``LookupError`` or
    ``AttributeError`` where they are not of its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    if [g["params"] for g in state["param_groups"]] != [g["params"] for g in groups]:
        raise ValueError("its optimizer is of other parameters")
    if not state["state"].keys() <= {*range(len(parameters))}:
        raise ValueError("its optimizer has moments of other parameters")
    for index, values in state["state"].items():
        _check_moments(type(optimizer).__name__, values, parameters[index].shape)
    shared = {
        index: {
            name: share_of(value, parameters[index])
            if is_sharded(parameters[index]) and value.ndim
            else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({"param_groups": groups, "state": shared})


def _check_moments(optimizer: str, values: Mapping[str, Any], shape: torch.Size) -> None:
    for name in _MOMENTS.get(optimizer, ()):
        check_weights({name: values[name]}, "its optimizer")
        if values[name].shape != shape or (name == "exp_avg_sq" and (values[name] < 0).any()):
            raise ValueError(f"its optimizer has {name} {shown(values[name])}")
    if optimizer == "AdamW":
        step = values["step"]
        counted = isinstance(step, Tensor) and step.is_floating_point() and step.numel() == 1
        if not counted or not 0 <= float(step) <= MOST_STEPS:
            raise ValueError(f"its optimizer has step {shown(step)}")
    if optimizer == "AdamW8bit":
        _check_packed(values, shape)


def _check_packed(values: Mapping[str, Any], shape: torch.Size) -> None:
    """As bitsandbytes packs them, whose kernels read what these say without looking."""
    wrapped = [each for each in values.values() if isinstance(each, Mapping)]  # by newer versions
    values = {name: part for each in (values, *wrapped) for name, part in each.items()}
    if not field(int, 0, MOST_STEPS).fits(values["step"]):
        raise ValueError(f"its optimizer has step {shown(values['step'])}")
    sizes = {-(-shape.numel() // block) for block in _PACKED_BLOCKS}
    for name in ("state1", "state2"):
        moments = values[name]
        wide = moments.dtype == torch.float32
        if moments.shape != shape or not (wide or moments.dtype == torch.uint8):
            raise ValueError(f"its optimizer has {name} {shown(moments)}")
        scales = {} if wide else {f"qmap{name[-1]}": {256}, f"absmax{name[-1]}": sizes}
        for part, counts in scales.items():
            stored = values[part]
            check_weights({part: stored}, "its optimizer")
            if stored.dtype != torch.float32 or stored.ndim != 1 or len(stored) not in counts:
                raise ValueError(f"its optimizer has {part} {shown(stored)}")

"""A device that is not the CPU, in Python: what streams weights can be seen without a GPU.

Its tensors hold CPU tensors, so that numbers are real. An operation on some tensors that lie on
the card and some that do not is refused, as by a GPU. It has no streams, no asynchronous copies
and no allocator of its own: of those it proves nothing. One per process, and not to be undone.
"""

import math
from threading import current_thread, main_thread

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from ..live_bytes import LiveBytes

_setup_privateuseone_for_python_backend("card")
torch.__future__.set_overwrite_module_params_on_conversion(True)

CARD = torch.device("card:0")


class CardMemory(LiveBytes):
    """What lies on the card. ``capacity``: bytes that it has. ``made``: how many allocations there
    were. ``fails``: the numbers of those that fail, from 0; in autograd's own thread, where an
    error of Python ends the process (in torch's PythonDeviceGuard), the next one elsewhere."""

    capacity, made, fails, late = math.inf, 0, (), False

    def add(self, tensor):
        if tensor.untyped_storage()._cdata not in self._known:
            self.made += 1
            self.late |= self.made - 1 in self.fails
            if self.late and current_thread() is main_thread():
                self.late = False
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        super().add(tensor)
        if self.now > self.capacity:
            raise torch.OutOfMemoryError(f"The card is full: {self.now} bytes.")


LIVE = CardMemory()
_aten = torch.ops.aten


class OnCard(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        with torch.inference_mode(False):  # in which a part of a wrapper cannot be taken
            return torch.Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=CARD,
            )

    def __init__(self, held):
        self.held = held
        LIVE.add(held)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, types, args, kwargs or {})

    def tolist(self):
        return self.held.tolist()

    def new_tensor(self, data):
        return OnCard(self.held.new_tensor(data))

    def __repr__(self):
        return f"OnCard({self.held})"


class Card(TorchDispatchMode):
    """Inside, tensors can be made on the card and brought there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, types, args, kwargs or {})


def _run(func, types, args, kwargs):
    if not all(kind in (torch.Tensor, torch.nn.Parameter, OnCard) for kind in types):
        return NotImplemented  # a quantised tensor, which handles itself and then its parts
    leaves = list(leaves_of((args, kwargs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    here = any(isinstance(tensor, OnCard) for tensor in tensors)
    if func is _aten._has_compatible_shallow_copy_type.default:
        return False
    if func is not _aten.copy_.default:
        elsewhere = [t for t in tensors if not isinstance(t, OnCard) and t.ndim]
        if here and elsewhere:
            raise RuntimeError(f"{func}: {tuple(elsewhere[0].shape)} is not on the card")
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    if devices:
        here = devices[0].type == CARD.type
        args, kwargs = _mapped(torch.device, lambda _: torch.device("cpu"), (args, kwargs))
    out = func(*_mapped(OnCard, _held, args), **_mapped(OnCard, _held, kwargs))
    if func._schema.is_mutable:
        return args[0] if isinstance(out, torch.Tensor) else out
    if devices and tensors and isinstance(tensors[0], OnCard) != here:
        out = out.clone()
    return _mapped(torch.Tensor, OnCard, out) if here else out


def _held(tensor):
    return tensor.held


def leaves_of(values):
    """As torch's tree_leaves for what operations take, several times as fast."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, (tuple, list, dict)):
            yield from leaves_of(value)
        else:
            yield value


def _mapped(kind, change, value):
    """As torch's tree_map_only."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(kind, change, each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(kind, change, each) for each in value])
    return value

"""Bytes of tensors that are alive, counted: what a run needs, without an allocator to ask."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes:
    """``now``: bytes of the storages that were :meth:`add`-ed and are still alive. ``most``: the
    largest ``now`` since it was last set."""

    def __init__(self):
        self.now = self.most = 0
        self._known = set()

    def add(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key, size):
        self._known.discard(key)
        self.now -= size


class Counting(TorchDispatchMode):
    """Counts what is made inside, results and temporaries of every operation; not what is made
    within one."""

    def __init__(self):
        super().__init__()
        self.live = LiveBytes()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage()._cdata for t in tensors_of((args, kwargs))}
        for tensor in tensors_of(out):
            if tensor.untyped_storage()._cdata not in inputs:
                self.live.add(tensor)
        return out


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def most_bytes(work):
    """The largest number of bytes alive of what ``work()`` makes."""
    with Counting() as counting:
        work()
    return counting.live.most

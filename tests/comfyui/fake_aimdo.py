"""A stand-in in Python for comfy_aimdo, ComfyUI's allocator of DynamicVRAM, on the card of card.py.

ComfyUI's own ModelPatcherDynamic then runs without a GPU, with any weights resident: each time that
a layer asks for its weight, :attr:`Residency.choose` says whether the card has room for it. It has
no streams, no pinned memory and no eviction of its own: of those it proves nothing.
"""

import ctypes
from pathlib import Path

import comfy_aimdo.host_buffer
import comfy_aimdo.model_mmap
import comfy_aimdo.model_vbar
import comfy_aimdo.torch
import torch

from .card import CARD


class Residency:
    """Which weights the card holds, by the number of the request and of the layer. ``asked``,
    ``refused``: how often, since :meth:`start`."""

    asked = refused = 0
    buffers: list = []  # noqa: RUF012

    @staticmethod
    def choose(number, layer):
        return True

    @classmethod
    def start(cls, choose):
        cls.choose, cls.asked, cls.refused = staticmethod(choose), 0, 0
        cls.buffers.clear()

    @classmethod
    def pinned(cls):
        return sum(count for buffer in cls.buffers for count in buffer.pins.values())


class Buffer:
    """A range of addresses on the card, of which some are backed: ``ModelVBAR``."""

    def __init__(self, size, device):
        self.places, self.offset, self.backed, self.epoch, self.pins = {}, 0, {}, {}, {}
        Residency.buffers.append(self)

    def prioritize(self, *_):
        pass

    def alloc(self, size):
        place = (self, self.offset, size)
        self.places[self.offset] = len(self.places)
        self.offset += size
        return place

    def loaded_size(self):
        return sum(memory.numel() for memory in self.backed.values())

    def free_memory(self, wanted):
        freed = 0
        for offset in [o for o in self.backed if not self.pins.get(o)]:
            if freed < wanted:
                freed += self.backed[offset].numel()
                self.drop(offset)
        return freed

    def drop(self, offset):
        del self.backed[offset]
        self.epoch[offset] = self.epoch.get(offset, 0) + 1


def fault(place):
    """A signature of the weight's memory if the card has room for it, which is then pinned."""
    buffer, offset, size = place
    Residency.asked += 1
    if not Residency.choose(Residency.asked, buffer.places[offset]):
        Residency.refused += 1
        if offset in buffer.backed and not buffer.pins.get(offset):
            buffer.drop(offset)
        return None
    if offset not in buffer.backed:
        with torch.inference_mode(False):  # as the allocator's, which knows of no such mode
            buffer.backed[offset] = torch.empty(size, dtype=torch.uint8, device=CARD)
    buffer.pins[offset] = buffer.pins.get(offset, 0) + 1
    return offset, buffer.epoch.get(offset, 0)


def unpin(place):
    if place is not None:
        buffer, offset, _ = place
        buffer.pins[offset] = buffer.pins.get(offset, 0) - 1


def to_tensor(place, device):
    buffer, offset, size = place
    return buffer.backed[offset][:size]


class HostBuffer:
    def __init__(self, *_, **__):
        self.size = 0

    def truncate(self, *_, **__):
        pass


class MappedFile:
    """``ModelMMAP``: a file's bytes, in memory while this lives."""

    def __init__(self, path):
        content = Path(path).read_bytes()
        self.bytes = ctypes.create_string_buffer(content, len(content))

    def get(self):
        return ctypes.addressof(self.bytes)

    def get_file_handle(self):
        return None

    def bounce(self):
        pass


def install():
    """In a process of its own, before a model is loaded."""
    vbar = comfy_aimdo.model_vbar
    vbar.ModelVBAR, vbar.vbar_fault, vbar.vbar_unpin = Buffer, fault, unpin
    vbar.vbar_signature_compare = lambda a, b: a is not None and a == b
    vbar.vbars_analyze = lambda *_: 0
    vbar.vbars_reset_watermark_limits = lambda: None
    comfy_aimdo.torch.aimdo_to_tensor = to_tensor
    comfy_aimdo.host_buffer.HostBuffer = HostBuffer
    comfy_aimdo.model_mmap.ModelMMAP = MappedFile

"""What glibc's allocator holds, in megabytes: in use, and free but not given back to the system."""

import ctypes
import re
import tempfile
from pathlib import Path

MEGABYTE = 2**20


def allocator():
    """glibc's own account, which is read from ``malloc_info``, the only one that knows arenas."""
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    libc.fclose.argtypes = [ctypes.c_void_p]
    libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
    with tempfile.NamedTemporaryFile() as file:
        stream = libc.fopen(file.name.encode(), b"w")
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        text = Path(file.name).read_text()
    heaps, _, whole = text.rpartition("</heap>")

    def total(kind):
        return int(re.search(rf'type="{kind}"(?: count="\d+")? size="(\d+)"', whole)[1])

    free = total("fast") + total("rest")
    used = total("mmap") + int(re.search(r'<system type="current" size="(\d+)"', whole)[1]) - free
    return {
        "in_use": round(used / MEGABYTE, 1),
        "free": round(free / MEGABYTE, 1),
        "arenas": heaps.count("<heap "),
    }

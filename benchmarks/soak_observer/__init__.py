"""A pack that says what ComfyUI's own process holds, for ``benchmarks/soak.py``.

``GET /soak`` collects garbage and gives the names of all Python threads, the number of blocks of
Python's allocator and, of glibc's, the megabytes in use, those free but not given back to the
system, and the number of its arenas.
``?types`` adds of which kinds of
objects there are most more than at the second such call. ``?trim`` gives back what is free before.
"""

import ctypes
import gc
import re
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
MEGABYTE = 2**20
CALLS, SECOND = Counter(), Counter()


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


def grown(most=12):
    now = Counter(type(thing).__qualname__ for thing in gc.get_objects())
    CALLS["grown"] += 1
    if CALLS["grown"] == 2:
        SECOND.update(now)
    return dict((now - SECOND).most_common(most)) if SECOND else {}


@PromptServer.instance.routes.get("/soak")
async def soak(request):
    gc.collect()
    if "trim" in request.query:
        ctypes.CDLL(None).malloc_trim(0)
    more = {"grown": grown()} if "types" in request.query else {}
    names = sorted(thread.name for thread in threading.enumerate())
    return web.json_response(
        allocator() | {"blocks": sys.getallocatedblocks(), "names": names} | more
    )

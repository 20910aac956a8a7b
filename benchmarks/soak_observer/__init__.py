"""A pack that says what ComfyUI's own process holds, for ``benchmarks/soak.py``.

``GET /soak`` collects garbage and gives the names of all Python threads, the number of blocks of
Python's allocator and, of glibc's, the megabytes in use, those free but not given back to the
system, and the number of its arenas. ``?types`` adds of which kinds of objects there are most more
than at the second such call. ``?trim`` gives back what is free before.
"""

import ctypes
import gc
import sys
import threading
from collections import Counter

from aiohttp import web
from server import PromptServer

from .allocator import allocator

NODE_CLASS_MAPPINGS = {}
CALLS, SECOND = Counter(), Counter()


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

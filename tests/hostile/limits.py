"""One case in a process of its own, forked from this one, which has imported all that it needs."""

import gc
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter

import torch
from mmada_parallel.mmp_core.errors import InputError

SECONDS, MEMORY, MESSAGE = 10, 2 * 2**30, 1000
"""What a case may take: seconds of a processor, bytes beyond the parent's, characters of what it is
told."""
_WAITED = 6
"""How many times as long a case may take that waits, for a processor or for ever."""


def warm():
    """Make forks cheap: what is there now is never looked at again by the collector."""
    torch.set_num_threads(1)  # forks of a process with threads of its own hang
    gc.collect()
    gc.freeze()


def judged(case, seconds=SECONDS, memory=MEMORY):
    """("ok" | "input" | "raw" | "timeout" | "died", what was said) of calling ``case``.

    input: one sentence, as users are told. raw: any other exception, or more than a sentence.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _run(case, writer, memory, seconds)
    os.close(writer)
    try:
        said = _read(reader, _WAITED * seconds)
        if said is None:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    if said is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return "timeout", f"more than {seconds} s"
    verdict, _, message = said.decode(errors="replace").partition("\n")
    return (verdict, message) if verdict else ("died", f"status {status}")


def _read(reader, seconds):
    """All that the child writes, or None where it takes longer than ``seconds``."""
    parts, end = [], time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            part = os.read(reader, 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None


def _run(case, writer, memory, seconds):
    try:
        used = int(sum(os.times()[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, used + seconds + 5))
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        try:
            case()
            said = "ok\n"
        except InputError as error:
            said = f"{'input' if one_sentence(error) else 'raw'}\n{error}"
        except BaseException:
            said = "raw\n" + "".join(traceback.format_exception(*sys.exc_info(), limit=-4))
        os.write(writer, said.encode(errors="replace")[:60_000])
    finally:
        os._exit(0)


def one_sentence(error):
    return "\n" not in str(error).strip() and len(str(error)) <= MESSAGE


def counts(verdicts):
    """The number of each verdict, in the order of the table of results."""
    found = Counter(verdicts)
    return {name: found[name] for name in ("ok", "input", "raw", "timeout", "died")}

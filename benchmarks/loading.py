"""How fast and in how much memory a checkpoint of the released widths is loaded.

``python -m mmada_parallel.benchmarks.loading [--layers 2] [--folder /tmp]`` writes random weights
of the released shapes (3.1 GB for two layers, 16.2 GB for all 32). Then, each time with the files
dropped from the page cache, it reads them as ``cat`` does, and loads them in a process of its own,
which reads every weight; both once more with the files in the page cache. It deletes them and
prints JSON. *anonymous*: memory of the process that is not the files' own pages. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mmada_parallel.benchmarks.convert import write_source
from mmada_parallel.benchmarks.measure import parser_of

_CHUNK = 2**24
_CHILD = """
import json, re, sys, time, torch
from mmada_parallel.mmp_core import load_checkpoint
def gb(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024 / 1e9
before, began = gb("RssAnon"), time.perf_counter()
model, most = load_checkpoint(sys.argv[1]), 0.0
loaded = time.perf_counter() - began
for weight in model.transformer.parameters():
    weight.view(-1)[::1024].count_nonzero()
    most = max(most, gb("RssAnon"))
print(json.dumps({
    "load_seconds": loaded, "load_and_read_seconds": time.perf_counter() - began,
    "anonymous_gb": most, "anonymous_before_gb": before,
}))
"""


def drop(files: Sequence[Path]) -> None:
    """Drop ``files`` from the page cache."""
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files: Sequence[Path]) -> float:
    """Seconds in which all bytes of ``files`` are read."""
    began = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while handle.read(_CHUNK):
                pass
    return time.perf_counter() - began


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_source(Path(folder), args.layers)
        files = sorted(Path(folder).glob("*.safetensors"))
        results = {"layers": args.layers, "gb": sum(f.stat().st_size for f in files) / 1e9}
        for state in ("dropped", "cached"):
            if state == "dropped":
                drop(files)
            results[f"cat_seconds_{state}"] = read(files)
            if state == "dropped":
                drop(files)
            command = [sys.executable, "-c", _CHILD, folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[state] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

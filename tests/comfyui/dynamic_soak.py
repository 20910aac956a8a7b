"""Run as ``python -m mmada_parallel.tests.comfyui.dynamic_soak COMFYUI FOLDER FILE RUNS``.

RUNS times in one process, with a plain and an int8 checkpoint in turn, under ComfyUI's DynamicVRAM
on the card in Python (fake_aimdo.py) that gives weights up now and then: the checkpoint is loaded,
edits, is trained on, edits with an adapter and without, and is unloaded. Writes to FILE, after each
round of two, what is left behind, and which results were not the first ones.
"""

import gc
import json
import os
import runpy
import sys
import threading
from pathlib import Path

import torch

from ..hosts import PACK_ROOT
from .card import LIVE, Card
from .dynamic_vram import observe, prepared
from .streaming import management

NAMES = ("plain", "int8.safetensors")
ALLOCATOR = PACK_ROOT / "benchmarks" / "soak_observer" / "allocator.py"  # in a pack of ComfyUI's
allocator = runpy.run_path(str(ALLOCATOR))["allocator"]
RESULTS = ("edits", "adapted", "training")


def state():
    gc.collect()
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (rss,) = (int(line.split()[1]) for line in rollup if line.startswith("Rss:"))
    return {
        "rss": round(rss / 1024, 1),
        "card": LIVE.now,
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        **allocator(),
    }


def main(file, runs):
    nodes, first, rounds, different = prepared(), {}, [], []
    with torch.inference_mode(), Card():  # as ComfyUI runs nodes
        for number in range(runs // len(NAMES)):
            for name in NAMES:
                found = observe(nodes, name, "flapping")
                management.reset_cast_buffers()  # as ComfyUI's executor does after each node
                results = json.dumps([found[each] for each in RESULTS])
                if first.setdefault(name, results) != results:
                    different.append([number, name])
            rounds.append(state())
            report = {"runs": len(rounds) * len(NAMES), "different": different, "rounds": rounds}
            file.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[3]), int(sys.argv[4]))

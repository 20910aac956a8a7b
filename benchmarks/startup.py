"""What the pack adds to ComfyUI's start, and what the first edit takes more than the second.

``python -m mmada_parallel.benchmarks.startup FILE [--pairs 3]`` starts ComfyUI (see tests/hosts.py)
until its custom nodes are loaded, with an empty pack and with this one in turn, once Python has
compiled both. It imports a fresh copy of the pack into processes that have ComfyUI's modules
already: the first compiles it, the second reads what Python cached. It makes two edits of the demo
in a fresh process. It writes to FILE after each measurement and continues from it.
All times are CPU seconds of the process, which other work on the machine hardly changes.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.tests.hosts import PACK_FOLDER, PACK_ROOT, find_host

EMPTY = '"""A pack without nodes."""\n\nNODE_CLASS_MAPPINGS = {}\n'
EDITS = """\
import json, time, torch
torch.set_num_threads(1)
from mmada_parallel.demo.evaluate import held_out, prompt_of
from mmada_parallel.mmp_core import SamplerSettings, decode_image, denoise, load_checkpoint
times = [time.process_time()]
model = load_checkpoint("demo", dtype=torch.float32)
times.append(time.process_time())
for task in held_out(2):
    decode_image(model, denoise(model, prompt_of(model, task), SamplerSettings()).final)
    times.append(time.process_time())
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""


IMPORT = """\
import asyncio, importlib.util, os, sys, time
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())
import comfy.options
comfy.options.enable_args_parsing()
import execution, folder_paths, nodes, server
from comfy_api.v0_0_2 import io
began = time.process_time()
file = os.environ["PACK"] + "/__init__.py"
spec = importlib.util.spec_from_file_location("pack", file)
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
pack.__path__ = [os.environ["PACK"]]
async def listed():
    for node in await (await pack.comfy_entrypoint()).get_node_list():
        node.GET_SCHEMA()
asyncio.run(listed())
print("seconds", time.process_time() - began)
"""


def cpu_seconds(command: list[str], folder: Path, **options: Any) -> tuple[float, str]:
    """CPU seconds of ``command``, its children included, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, **options
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    taken = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return taken, done.stdout + done.stderr


def environment(**more: str) -> dict[str, str]:
    """This process's, in which Python finds no other copy and keeps what it compiles."""
    unset = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in unset} | more


def start(pack: bool) -> float:
    """CPU seconds of ComfyUI from its start until it has loaded an empty pack, or this one."""
    host = find_host("current")
    with tempfile.TemporaryDirectory() as folder:
        nodes = Path(folder) / "custom_nodes"
        nodes.mkdir()
        if pack:
            (nodes / PACK_FOLDER).symlink_to(PACK_ROOT, target_is_directory=True)
        else:
            (nodes / PACK_FOLDER).mkdir()
            (nodes / PACK_FOLDER / "__init__.py").write_text(EMPTY)
        command = [sys.executable, "main.py", "--cpu", "--quick-test-for-ci"]
        command += ["--disable-auto-launch", "--disable-api-nodes", "--base-directory", folder]
        command += ["--database-url", f"sqlite:///{folder}/comfyui.db"]
        taken, log = cpu_seconds(command, host.path, env=environment(HF_HUB_OFFLINE="1"))
        if "IMPORT FAILED" in log or PACK_FOLDER not in log:
            raise SystemExit(f"The pack was not loaded:\n{log[-2000:]}")
        return taken


def edits() -> dict[str, float]:
    """CPU seconds of loading the demo and of its first and second edit in a fresh process."""
    _, printed = cpu_seconds([sys.executable, "-c", EDITS], PACK_ROOT)
    load, first, second = json.loads(printed.strip().splitlines()[0])
    return {"load": load, "first": first, "second": second}


def imports() -> dict[str, float]:
    """CPU seconds that the import of a fresh copy and its list of nodes take, and a second one."""
    host = find_host("current")
    with tempfile.TemporaryDirectory() as folder:
        code = shutil.ignore_patterns(".*", "*.safetensors", "tests", "__pycache__", "build")
        shutil.copytree(PACK_ROOT, f"{folder}/pack", ignore=code)
        command = [sys.executable, "-c", IMPORT]
        taken = {}
        for name in ("first", "again"):
            env = environment(PACK=f"{folder}/pack")
            printed = cpu_seconds(command, host.path, env=env)[1].splitlines()
            (line,) = (line for line in printed if line.startswith("seconds"))
            taken[name] = float(line.split()[1])
        return taken


def summary(
    pairs: list[list[float]], runs: list[dict[str, float]], imported: list[dict[str, float]]
) -> dict[str, float]:
    added = [pack - empty for empty, pack in pairs]
    results = {"empty_pack": statistics.median(empty for empty, _ in pairs)} if pairs else {}
    if pairs:
        results["added_by_this_pack"] = statistics.median(added)
    for name in ("first", "again"):
        if imported:
            results[f"import_{name}"] = statistics.median(one[name] for one in imported)
    if runs:
        results["first_over_second_edit"] = statistics.median(
            r["first"] / r["second"] for r in runs
        )
    return results


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    results: dict[str, Any] = {"starts": [], "imports": [], "edits": []}
    if args.file.exists():
        results = json.loads(args.file.read_text(encoding="utf-8"))
    host, began = find_host("current"), time.perf_counter()
    measures = {"imports": imports, "edits": edits, "starts": lambda: [start(False), start(True)]}
    for name, measure in measures.items():
        results.setdefault(name, [])
        if name == "starts" and len(results[name]) < args.pairs:
            measure()
        while len(results[name]) < args.pairs:
            results[name].append(measure())
            results |= {
                "command": f"python -m mmada_parallel.benchmarks.startup FILE --pairs {args.pairs}",
                "machine": f"{os.uname().machine}, CPU, {host}, busy with other work",
                "date": date.today().isoformat(),
                "summary": summary(results["starts"], results["edits"], results["imports"]),
            }
            with replacing(args.file) as whole:
                whole.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{name} {len(results[name])}: {time.perf_counter() - began:.0f} s", flush=True)
    print(json.dumps(results["summary"], indent=1))


if __name__ == "__main__":
    main()

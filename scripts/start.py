"""See an edit happen: ``python3 scripts/start.py``.

Sets up ``.venv`` and starts ComfyUI with this pack, where ComfyUI is installed or can be cloned.
Otherwise makes the same edit from the command line, into ``output/``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import comfyui
from comfyui import PACK
from environment import ROOT, SetupError, add_requirements, has_gpu, prepare, tell

OUTPUT = ROOT / "output"
_TEMPLATE = "Edit an image"
_SCENE = """\
import sys
from mmada_parallel.demo.picture_book.tasks import task
task(int(sys.argv[1]), held_out=True, kinds=(sys.argv[2],)).source.picture().save(sys.argv[3])
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cli", action="store_true", help="make the edit from the command line")
    args = parser.parse_args()
    try:
        python = prepare()
        reason = "as asked with --cli" if args.cli else _serve(python)
        return _on_command_line(python, reason) if reason else 0
    except SetupError as error:
        tell(str(error))
        return 2


def _serve(python: Path) -> str | None:
    """Run ComfyUI until it is stopped; why not, where that cannot be."""
    folder, named = comfyui.find(), os.environ.get("COMFYUI_PATH")
    if folder is None and named:
        return f"COMFYUI_PATH, {named}, is no ComfyUI of 0.16 or newer"
    folder = folder or comfyui.clone()
    if folder is None:
        return "ComfyUI is neither installed here nor could it be cloned"
    name, log = f"ComfyUI {'.'.join(map(str, comfyui.version(folder)))}", OUTPUT / "comfyui.log"
    try:
        add_requirements(folder / "requirements.txt")
        tell(f"Starting {name} in {folder}")
        with comfyui.running(folder, python, log, cpu=not has_gpu()) as (url, process):
            print(
                f"\n{name} runs with {PACK}, and without other packs.\n\n"
                f"    Open {url}\n"
                f'    Choose Templates -> {PACK} -> "{_TEMPLATE}", and press Run.\n\n'
                f"Ctrl-C stops ComfyUI; its log is {log}.",
                flush=True,
            )
            try:
                process.wait()
            except KeyboardInterrupt:
                print("\nStopping ComfyUI.")
    except SetupError as error:
        return str(error).rstrip(".")
    return None


def _on_command_line(python: Path, reason: str) -> int:
    print(f"The edit is made from the command line ({reason}).", flush=True)
    OUTPUT.mkdir(exist_ok=True)
    number, kind, instruction, seed = shipped_edit()
    scene, edited = OUTPUT / "scene.png", OUTPUT / "edited.png"
    command = [str(python), "-c", _SCENE, str(number), kind, str(scene)]
    made = subprocess.run(command, check=False, cwd=OUTPUT)
    if made.returncode:
        return made.returncode
    print(f"Before:      {scene}\nInstruction: {instruction}", flush=True)
    command = [str(python.with_name(PACK)), "edit", str(scene), instruction]
    command += ["--model", "picture-book", "--seed", str(seed), "--out", str(edited)]
    return subprocess.run(command, check=False).returncode


def shipped_edit() -> tuple[int, str, str, int]:
    """Number and kind of the scene, instruction and seed of the workflow that is shipped."""
    file = ROOT / "workflows" / f"{_TEMPLATE}.json"
    nodes = json.loads(file.read_text(encoding="utf-8"))["nodes"]
    values = {node["type"]: node["widgets_values"] for node in nodes}
    number, _, kind, *_ = values["MMaDAParallelDemoScene"]
    instruction, *_ = values["MMaDAParallelEncodeInstruction"]
    return number, kind, instruction, values["MMaDAParallelDenoise"][0]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # so that ComfyUI never outlives this
    signal.signal(signal.SIGINT, _interrupt)  # even where a shell has it ignored
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

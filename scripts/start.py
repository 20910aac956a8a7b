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
from typing import Any

import comfyui
import environment
from environment import tell
from server import PACK, Server, StartError

OUTPUT = environment.ROOT / "output"
_TEMPLATE = "Edit an image"
_SCENE = """\
import sys
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.render import render
from mmada_parallel.demo.world import KINDS, task
kinds = tuple(kind for kind in KINDS if kind != "generate")
render(task(HELD_OUT + int(sys.argv[1]), kinds=kinds).before).save(sys.argv[2])
"""


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        python = environment.prepare()
        reason = "as asked with --cli" if args.cli else _in_comfyui(python, check=args.check)
        return _on_command_line(python, reason) if reason else 0
    except environment.SetupError as error:
        tell(str(error))
        return 2
    except StartError as error:
        tell(f"The check failed: {error}")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cli", action="store_true", help="make the edit from the command line")
    parser.add_argument(
        "--check",
        action="store_true",
        help="start ComfyUI with folders of its own, make one edit there through its API, and stop",
    )
    return parser


def _in_comfyui(python: Path, *, check: bool) -> str | None:
    """Edit in ComfyUI until it is stopped; why not, where that cannot be."""
    folder = comfyui.find()
    if folder is None and os.environ.get("COMFYUI_PATH"):
        return f"COMFYUI_PATH, {os.environ['COMFYUI_PATH']}, is no ComfyUI of 0.16 or newer"
    folder = folder or comfyui.clone()
    if folder is None:
        return "ComfyUI is neither installed here nor could it be cloned"
    tell(f"Using ComfyUI in {folder}")
    try:
        environment.add_requirements(folder / "requirements.txt")
        log, cpu = OUTPUT / "comfyui.log", not environment.has_gpu()
        tell("Starting ComfyUI")
        with Server(folder, python, log, cpu=cpu, isolated=check) as server:
            nodes = server.get("/object_info")
            if "MMaDAParallelLoader" not in nodes:
                raise StartError(f"{server.name} did not load the pack; see {log}")
            _check(server, nodes) if check else _serve(server)
    except (environment.SetupError, StartError) as error:
        if check:
            raise
        return str(error).rstrip(".")
    return None


def _serve(server: Server) -> None:
    print(
        f"\n{server.name} runs with {PACK}, and without other packs.\n\n"
        f"    Open {server.url}\n"
        f'    Choose Templates -> {PACK} -> "{_TEMPLATE}", and press Run.\n\n'
        f"Ctrl-C stops ComfyUI; its log is {server.log}.",
        flush=True,
    )
    try:
        server.wait()
    except KeyboardInterrupt:
        print("\nStopping ComfyUI.")


def _check(server: Server, nodes: dict[str, Any]) -> None:
    templates = server.get("/workflow_templates").get(PACK, [])
    if _TEMPLATE not in templates:
        raise StartError(f"{server.name} does not list the template {_TEMPLATE!r}: {templates}.")
    outputs = server.run(_edit(nodes))["outputs"].values()
    pictures = [picture for output in outputs for picture in output.get("images", [])]
    saved = [picture["filename"] for picture in pictures if picture["type"] == "output"]
    print(f"{server.name} made the edit and saved {', '.join(saved)}.")


def _edit(nodes: dict[str, Any]) -> dict[str, Any]:
    """The shipped edit in API format, all else at the nodes' defaults."""

    def node(kind: str, **given: Any) -> dict[str, Any]:
        declared = nodes[kind]["input"].get("required", {})
        defaults = {name: _default(*spec) for name, spec in declared.items() if name not in given}
        return {"class_type": kind, "inputs": {**defaults, **given}}

    number, instruction, seed = shipped_edit()

    return {
        "scene": node("MMaDAParallelDemoScene", seed=number),
        "model": node("MMaDAParallelLoader"),
        "prompt": node(
            "MMaDAParallelEncodeInstruction",
            model=["model", 0],
            image=["scene", 0],
            instruction=instruction,
        ),
        "tokens": node("MMaDAParallelDenoise", model=["model", 0], prompt=["prompt", 0], seed=seed),
        "image": node("MMaDAParallelDecodeImage", model=["model", 0], tokens=["tokens", 0]),
        "saved": node("SaveImage", images=["image", 0]),
    }


def _default(kind: Any, options: dict[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    return (kind if isinstance(kind, list) else options.get("options", [None]))[0]


def _on_command_line(python: Path, reason: str) -> int:
    print(f"The edit is made from the command line ({reason}).", flush=True)
    OUTPUT.mkdir(exist_ok=True)
    number, instruction, seed = shipped_edit()
    scene, edited = OUTPUT / "scene.png", OUTPUT / "edited.png"
    command = [str(python), "-c", _SCENE, str(number), str(scene)]
    made = subprocess.run(command, check=False, cwd=OUTPUT)
    if made.returncode:
        return made.returncode
    print(f"Before:      {scene}\nInstruction: {instruction}", flush=True)
    command = [str(python.with_name(PACK)), "edit", str(scene), instruction]
    command += ["--seed", str(seed), "--out", str(edited)]
    return subprocess.run(command, check=False).returncode


def shipped_edit() -> tuple[int, str, int]:
    """Number of the scene, instruction and seed of the workflow that is shipped."""
    file = environment.ROOT / "workflows" / f"{_TEMPLATE}.json"
    nodes = json.loads(file.read_text(encoding="utf-8"))["nodes"]
    first = {node["type"]: node["widgets_values"][0] for node in nodes if node["widgets_values"]}
    kinds = ("DemoScene", "EncodeInstruction", "Denoise")
    return tuple(first[f"MMaDAParallel{kind}"] for kind in kinds)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # so that ComfyUI never outlives this
    signal.signal(signal.SIGINT, _interrupt)  # even where a shell has it ignored
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

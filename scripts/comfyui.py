"""Where ComfyUI is, and how to get it. Standard library only, importable from anywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (0, 16)
_SOURCE = "https://github.com/comfyanonymous/ComfyUI"
_CLONE_SECONDS = 600
_USUAL = ("comfy/ComfyUI", "ComfyUI")


def find() -> Path | None:
    """``COMFYUI_PATH``, else the ComfyUI that the pack lies in, else one in a usual place."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named).expanduser()] if named else _places()
    return next((place for place in places if _fits(place)), None)


def find_oldest() -> Path | None:
    """``COMFYUI_OLD_PATH``, else the usual place of the oldest supported version, for the tests."""
    named = os.environ.get("COMFYUI_OLD_PATH") or "~/comfy/ComfyUI-0.16.4"
    place = Path(named).expanduser()
    return place if _fits(place) else None


def _places() -> list[Path]:
    here = Path(__file__).absolute().parents[1]
    around = [root.parents[1] for root in (here, ROOT) if root.parent.name == "custom_nodes"]
    return [*around, ROOT.parent / "ComfyUI", *(Path.home() / place for place in _USUAL)]


def _fits(folder: Path) -> bool:
    return (folder / "main.py").is_file() and version(folder) >= OLDEST


def version(folder: Path) -> tuple[int, ...]:
    """(0, 16, 4); empty where that cannot be read."""
    file = folder / "comfyui_version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    numbers = re.search(r'"(\d+)\.(\d+)\.(\d+)', text)
    return tuple(map(int, numbers.groups())) if numbers else ()


def clone() -> Path | None:
    """A new ComfyUI beside the repository, or nothing where GitHub cannot be reached."""
    target = ROOT.parent / "ComfyUI"
    if target.exists() or not shutil.which("git"):
        return None
    print(f"Cloning {_SOURCE} to {target}", file=sys.stderr, flush=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["git", "clone", "--depth", "1", _SOURCE, str(partial)]
    silent = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(command, check=True, timeout=_CLONE_SECONDS, env=silent)
        return partial.rename(target)
    except (subprocess.SubprocessError, OSError):
        shutil.rmtree(partial, ignore_errors=True)
        return None

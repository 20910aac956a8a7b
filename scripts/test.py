"""Set up and run the tests: ``python3 scripts/test.py [PYTEST ARGUMENT …]``.

The tests in the real ComfyUI run where one is found (``COMFYUI_PATH``, or a usual place), those in
the browser where Chromium is, too; what is skipped is listed with its reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import comfyui
import environment

_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def main(arguments: list[str]) -> int:
    found = comfyui.find()
    try:
        python = environment.prepare(_extras(found))
        _add_comfyui(found)
    except environment.SetupError as error:
        print(error, file=sys.stderr)
        return 2
    ours = {**os.environ, "COMFYUI_PATH": str(found)} if found else dict(os.environ)
    command = [str(python), "-m", "pytest", "-ra", *arguments]
    return subprocess.run(command, cwd=environment.ROOT, env=ours, check=False).returncode


def _extras(found: Path | None) -> list[str]:
    browser = os.environ.get("MMADA_CHROMIUM") or any(map(shutil.which, _CHROMIUM))
    return ["test", "browser-test"] if found and browser else ["test"]


def _add_comfyui(found: Path | None) -> None:
    """What ComfyUI needs; where that cannot be had, its tests skip and say so."""
    try:
        if found:
            environment.add_requirements(found / "requirements.txt")
        if found and (oldest := comfyui.find_oldest()):
            environment.add_requirements(oldest / "requirements.txt", pinned=False)
    except environment.SetupError as error:
        environment.tell(f"ComfyUI's requirements are incomplete: {error}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

"""Set up and run the tests: ``python3 scripts/test.py [PYTEST ARGUMENT …]``.

The tests in the real ComfyUI run where one is found (``COMFYUI_PATH``, or a usual place), those in
the browser where Chromium is, too; what is skipped is listed with its reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import comfyui
from environment import ROOT, SetupError, add_requirements, prepare, tell

_CORES = os.cpu_count() or 1
_WORKERS = min(4, _CORES)
_SHARED = ("-n", str(_WORKERS), "--dist", "loadfile", "--no-loadscope-reorder")
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def main(arguments: list[str]) -> int:
    host, variables = comfyui.find(), dict(os.environ)
    browser = os.environ.get("MMADA_CHROMIUM") or any(map(shutil.which, _CHROMIUM))
    try:
        python = prepare(["test", "browser-test"] if host and browser else ["test"])
    except SetupError as error:
        tell(str(error))
        return 2
    if host:
        variables["COMFYUI_PATH"] = str(host)
        try:
            add_requirements(host / "requirements.txt")
            if oldest := comfyui.find_oldest():
                add_requirements(oldest / "requirements.txt", pinned=False)
        except SetupError as error:
            tell(f"ComfyUI's requirements are incomplete, so its tests may be skipped: {error}")
    variables.setdefault("OMP_NUM_THREADS", str(_CORES // _WORKERS))  # of the servers, too
    command = [str(python), "-m", "pytest", "-ra", "--durations=40", *_SHARED, *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

"""ComfyUI's front ends by version: from the package index, each unpacked once.

They are kept in $MMADA_FRONT_ENDS, by default in the user's cache folder.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "comfyui-frontend-package"
NEWEST = "newest"


class FrontEndUnavailable(Exception):
    """The package index cannot be reached, or has no such version."""


def pinned(checkout):
    """The version that a checkout of ComfyUI asks for."""
    text = (checkout / "requirements.txt").read_text()
    return re.search(rf"{PACKAGE}==([\d.]+)", text).group(1)


def front_end(version):
    """The folder that `--front-end-root` takes, or None for the version that is installed."""
    if version == importlib.metadata.version(PACKAGE):
        return None
    folder = _cache() / version
    if version == NEWEST or not folder.is_dir():
        folder = _download(version)
    return folder / "comfyui_frontend_package" / "static"


def _cache():
    named = os.environ.get("MMADA_FRONT_ENDS")
    return Path(named) if named else Path.home() / ".cache" / "mmada-parallel" / "front-ends"


def _download(version):
    wanted = PACKAGE if version == NEWEST else f"{PACKAGE}=={version}"
    with tempfile.TemporaryDirectory() as place:
        options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--dest", place]
        command = [sys.executable, "-m", "pip", "download", *options, wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or not wheels:
            raise FrontEndUnavailable(f"{wanted} cannot be downloaded: {done.stderr[-300:]}")
        folder = _cache() / wheels[0].name.split("-")[1]
        if not folder.is_dir():
            with zipfile.ZipFile(wheels[0]) as wheel:
                wheel.extractall(Path(place) / "unpacked")
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(place) / "unpacked", folder)
    return folder

"""``check`` without a path: what is installed here, what it runs on, and which models there are."""

from __future__ import annotations

import json
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..mmp_core import InputError
from ..mmp_core.checkpoint.inspect import inspect_checkpoint
from ..mmp_core.files import readable_size
from ..mmp_core.memory import free_bytes
from ..mmp_core.model.kernels import available
from ..mmp_core.outside import head_of
from .download import models_folder
from .model import pick_device

_PACKAGES = ("mmada-parallel", "torch", "transformers", "safetensors", "triton")


def report(as_json: bool) -> None:
    """Print it, as lines or as one JSON object."""
    device = torch.device(pick_device("auto"))
    folder = models_folder()
    found: dict[str, Any] = {
        "versions": _versions(folder),
        "device": _named(device),
        "kernels": available(device),
        "free_memory": _free(device),
        "folder": str(folder),
        "models": _models(folder),
    }
    print(json.dumps(found) if as_json else "\n".join(_lines(found)))


def _versions(folder: Path) -> dict[str, str]:
    versions = {"Python": platform.python_version(), "system": platform.platform(terse=True)}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    if torch.version.cuda:
        versions["CUDA"] = torch.version.cuda
    versions["ComfyUI"] = _comfyui(folder)
    return versions


def _comfyui(folder: Path) -> str:
    """Version of the ComfyUI that ``folder`` is the models folder of."""
    try:
        text = head_of(folder.parents[1] / "comfyui_version.py")
    except (OSError, IndexError):
        return "not found"
    version = re.search(r'__version__ = "(.+?)"', text)
    return version[1] if version else "not known" if text else "not found"


def _named(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    return f"{device.type}, {torch.cuda.get_device_name(device)}"


def _free(device: torch.device) -> dict[str, int]:
    """Bytes by device, where they are known."""
    devices = {device.type: device, "cpu": torch.device("cpu")}
    free = {name: free_bytes(one) for name, one in devices.items()}
    return {name: int(size) for name, size in free.items() if size != float("inf")}


def _models(folder: Path) -> dict[str, str]:
    """Each checkpoint that the nodes offer, in a line: what it is, or why it is not loaded."""
    places: dict[str, str | Path] = {"demo": "demo"}
    for path in sorted(folder.glob("*")) + sorted(folder.glob("*/*")):
        inside = path.parent != folder and _is_checkpoint(path.parent)
        if not inside and (path.suffix == ".safetensors" or _is_checkpoint(path)):
            places[path.relative_to(folder).as_posix()] = path
    return {name: _line(place) for name, place in places.items()}


def _is_checkpoint(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file()
    except OSError:  # which its line then says
        return True


def _line(place: str | Path) -> str:
    try:
        found = inspect_checkpoint(place)
        return f"{found.family}, {found.dtype}" + "".join(f", {name}" for name in found.quantized)
    except InputError as problem:
        return f"cannot be loaded: {' '.join(str(problem).split())}"


def _lines(found: dict[str, Any]) -> list[str]:
    versions = [f"{name} {version}" for name, version in found["versions"].items()]
    free = [f"{readable_size(size)} ({name})" for name, size in found["free_memory"].items()]
    kernels = "used" if found["kernels"] else "not used here; PyTorch computes the same"
    return [
        f"versions: {', '.join(versions)}",
        f"device: {found['device']}",
        f"Triton kernels: {kernels}",
        f"free memory: {', '.join(free) or 'not known'}",
        f"models folder: {found['folder']}",
        "models:",
        *(f"  {name}: {line}" for name, line in found["models"].items()),
    ]

"""The repository's own environment, ``.venv``, made with the standard library and pip alone.

``python3 scripts/environment.py [EXTRA …]`` prepares it and prints the path of its Python. If the
Python that runs this has torch, ``.venv`` uses its packages and installs only what is missing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
_DONE = FOLDER / "prepared.json"
_OLDEST = (3, 10)
_VISION_SCHEMAS = """

if not _has_ops():  # added by mmada-parallel's scripts/environment.py
    _schemas = torch.library.Library("torchvision", "DEF")
    _schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


class SetupError(Exception):
    """What went wrong and what to do, in one sentence."""


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(extras: Sequence[str] = ()) -> Path:
    """``.venv`` with the package and ``extras``; its Python. Fast when nothing has changed."""
    if sys.version_info < _OLDEST:
        raise SetupError(f"Python {platform.python_version()} is too old; 3.10 or newer is needed.")
    if _python("-c", "import pip").returncode:
        _make()
    chosen = f"[{','.join(sorted(extras))}]" if extras else ""
    _install_once(f"package{chosen}", ROOT / "pyproject.toml", ["-e", f"{ROOT}{chosen}"])
    return PYTHON


def add_requirements(file: Path, *, pinned: bool = True) -> None:
    """Install a requirements file, such as ComfyUI's, keeping the torch that is there.

    ``pinned``: with the lines that ask for one exact version.
    """
    lines = [line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines()]
    lines = [line for line in lines if line and (pinned or "==" not in line)]
    _install_once("pinned requirements" if pinned else f"requirements {file}", file, lines)


def has_gpu() -> bool:
    """Whether the torch in ``.venv`` can compute on more than the CPU."""
    devices = "torch.cuda.is_available(), torch.backends.mps.is_available(), xpu"
    code = "import torch; xpu = hasattr(torch, 'xpu') and torch.xpu.is_available()"
    return _python("-c", f"{code}; raise SystemExit(not any(({devices})))").returncode == 0


def _make() -> None:
    tell(f"Making {FOLDER}")
    command = [sys.executable, "-m", "venv", "--clear", str(FOLDER)]
    if subprocess.run(command, check=False).returncode:
        raise SetupError(
            f"{sys.executable} -m venv failed; on Debian and Ubuntu: apt install python3-venv."
        )
    if importlib.util.find_spec("torch"):
        tell(f"Using the packages of {sys.prefix}")
        folders = filter(os.path.isdir, [*site.getsitepackages(), site.getusersitepackages()])
        (_packages() / "borrowed.pth").write_text("\n".join(folders) + "\n", encoding="utf-8")


def _install_once(name: str, source: Path, arguments: list[str]) -> None:
    """``pip install`` unless that was the last done under ``name``, with the same ``source``."""
    text = repr((arguments, source.read_text("utf-8")))
    mark = hashlib.sha256(text.encode()).hexdigest()
    done = json.loads(_DONE.read_text()) if _DONE.is_file() else {}
    if done.get(name) == mark:
        return
    if not _torch_version():
        _pip([_torch_to_install()])
    constraints = FOLDER / "constraints.txt"
    constraints.write_text(f"torch=={_torch_version()}\n", encoding="utf-8")
    tell(f"Installing: {name} of {source.parent} (some minutes the first time)")
    _pip(["-c", str(constraints), *arguments])
    if _torch_version().endswith("+cpu"):
        _fit_extras()
    _DONE.write_text(json.dumps({**done, name: mark}))


def _torch_version() -> str:
    code = "from importlib.metadata import version; print(version('torch'))"
    return _python("-c", code).stdout.strip()


def _torch_to_install() -> str:
    """A CPU-only build on Linux without NVIDIA's driver, where pip's sources have one: the usual
    build for Linux brings gigabytes of CUDA."""
    nvidia = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()
    if platform.system() != "Linux" or nvidia:
        return "torch>=2.4"
    offered = re.search(r"[\w.]+\+cpu\b", _python("-m", "pip", "index", "versions", "torch").stdout)
    if offered:
        return f"torch=={offered[0]}"
    tell(
        "There is no NVIDIA driver, and pip's sources have no CPU-only torch: the build with CUDA "
        "comes instead (gigabytes). PyTorch's installation page tells how to get the small one: "
        f"run its command with {PYTHON} -m pip, then this again."
    )
    return "torch>=2.4"


def _fit_extras() -> None:
    """Let torchvision and torchaudio be imported where pip had a CPU-only torch and of them only
    builds for CUDA, whose compiled parts cannot load; ComfyUI and open_clip import both.

    torchaudio imports without its compiled parts; torchvision needs the schemas of the operators
    that it describes at import. Packages outside ``.venv`` and such as work stay as they are.
    """
    vision, audio = _packages() / "torchvision", _packages() / "torchaudio"
    if vision.is_dir() and _python("-c", "import torchvision").returncode:
        with open(vision / "extension.py", "a", encoding="utf-8") as file:
            file.write(_VISION_SCHEMAS)
    if audio.is_dir() and _python("-c", "import torchaudio").returncode:
        for library in audio.glob("lib/*_torchaudio*.so"):
            library.unlink()


def _packages() -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(_python("-c", code).stdout.strip())


def _pip(arguments: list[str]) -> None:
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *quiet]
    if subprocess.run([*command, *arguments], stdout=sys.stderr, check=False).returncode:
        raise SetupError("pip could not install what is needed; its last lines above say why.")


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the Python of ``.venv``; return code 1 where there is none."""
    command = [str(PYTHON), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=FOLDER)
    except OSError:
        return subprocess.CompletedProcess(command, 1, "", "")


if __name__ == "__main__":
    try:
        print(prepare(sys.argv[1:]))
    except SetupError as error:
        sys.exit(str(error))

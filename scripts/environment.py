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

from comfyui import ROOT

FOLDER = ROOT / ".venv"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
_PREPARED = FOLDER / "prepared.json"
_OLDEST = (3, 10)


class SetupError(Exception):
    """What went wrong and what to do, in one sentence."""


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(extras: Sequence[str] = ()) -> Path:
    """``.venv`` with the package and ``extras``; its Python. Fast when nothing has changed."""
    if sys.version_info < _OLDEST:
        raise SetupError(f"Python {platform.python_version()} is too old; 3.10 or newer is needed.")
    _make()
    chosen = f"[{','.join(sorted(extras))}]" if extras else ""
    _once(f"package{chosen}", [ROOT / "pyproject.toml"], ["-e", f"{ROOT}{chosen}"])
    return PYTHON


def add_requirements(file: Path, *, pinned: bool = True) -> None:
    """Install a requirements file, such as ComfyUI's, keeping the torch that is there.

    ``pinned``: with the lines that ask for one exact version.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    wanted = [line.partition("#")[0].strip() for line in lines]
    wanted = [line for line in wanted if line and (pinned or "==" not in line)]
    _once("pinned requirements" if pinned else f"requirements {file}", [file], wanted)


def has_gpu() -> bool:
    """Whether the torch in ``.venv`` can compute on more than the CPU."""
    found = "any((torch.cuda.is_available(), torch.backends.mps.is_available(), xpu))"
    code = "import torch; xpu = hasattr(torch, 'xpu') and torch.xpu.is_available()"
    return _python("-c", f"{code}; raise SystemExit(not {found})").returncode == 0


def _make() -> None:
    if _python("-c", "import pip").returncode == 0:
        return
    tell(f"Making {FOLDER}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=False)
    if made.returncode:
        raise SetupError(
            f"{sys.executable} -m venv failed; on Debian and Ubuntu: apt install python3-venv."
        )
    if importlib.util.find_spec("torch"):
        tell(f"Using the packages of {sys.prefix}")
        folders = [*site.getsitepackages(), site.getusersitepackages()]
        own = _python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        text = "\n".join(folder for folder in folders if os.path.isdir(folder))
        (Path(own) / "borrowed.pth").write_text(text + "\n", encoding="utf-8")


def _once(name: str, sources: list[Path], arguments: list[str]) -> None:
    """``pip install`` unless that was the last done under ``name``, with the same ``sources``."""
    text = repr((arguments, [source.read_text(encoding="utf-8") for source in sources]))
    mark = hashlib.sha256(text.encode()).hexdigest()
    done = json.loads(_PREPARED.read_text()) if _PREPARED.is_file() else {}
    if done.get(name) == mark:
        return
    _install_torch()
    constraints = FOLDER / "constraints.txt"
    constraints.write_text(f"torch=={_torch_version()}\n", encoding="utf-8")
    tell(f"Installing: {name} of {sources[0].parent} (some minutes the first time)")
    _pip(["-c", str(constraints), *arguments])
    _fit_torchvision()
    _PREPARED.write_text(json.dumps({**done, name: mark}))


def _install_torch() -> None:
    if not _torch_version():
        wanted = _torch_to_install()
        tell(f"Installing {wanted}")
        _pip([wanted])


def _torch_version() -> str:
    code = "from importlib.metadata import version; print(version('torch'))"
    return _python("-c", code).stdout.strip()


def _torch_to_install() -> str:
    """A CPU-only build on Linux without NVIDIA's driver, where pip's sources have one.

    The build that PyPI has for Linux brings gigabytes of CUDA.
    """
    nvidia = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()
    if platform.system() != "Linux" or nvidia:
        return "torch>=2.4"
    listed = subprocess.run(
        [str(PYTHON), "-m", "pip", "index", "versions", "torch"],
        capture_output=True,
        text=True,
        check=False,
    )
    offered = re.findall(r"[\w.]+\+cpu\b", listed.stdout)
    if offered:
        return f"torch=={offered[0]}"
    tell(
        "There is no NVIDIA driver, and pip's sources have no CPU-only torch: the build with CUDA "
        "comes instead (gigabytes). PyTorch's installation page tells how to get the small one: "
        f"run its command with {PYTHON} -m pip, then this again."
    )
    return "torch>=2.4"


def _fit_torchvision() -> None:
    """Where pip had no build of torchvision for a CPU-only torch, let it be imported all the same.

    Without this neither ComfyUI nor open_clip start beside such a torch.
    """
    if _torch_version().endswith("+cpu"):
        _python(str(Path(__file__).with_name("cpu_torch_extras.py")))


def _pip(arguments: list[str]) -> None:
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *quiet]
    done = subprocess.run([*command, *arguments], stdout=sys.stderr, check=False)
    if done.returncode:
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

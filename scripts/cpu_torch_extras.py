"""Let torchvision and torchaudio be imported beside a CPU-only torch.

For the Python that runs it, where pip's sources had a CPU-only torch but only CUDA builds of those
two: their compiled parts cannot load. torchaudio imports without them; torchvision needs the
schemas of the operators that it describes at import (its pure Python parts then work). Changes
nothing outside the running environment, nothing that can be imported as it is.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

_SCHEMAS = """

if not _has_ops():  # added by mmada-parallel's scripts/cpu_torch_extras.py
    _schemas = torch.library.Library("torchvision", "DEF")
    _schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def broken(name: str) -> Path | None:
    """The folder of package ``name`` of this environment if it is there but cannot be imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not Path(spec.origin).is_relative_to(sys.prefix):
        return None
    command = [sys.executable, "-c", f"import {name}"]
    fails = subprocess.run(command, capture_output=True, check=False).returncode
    return Path(spec.origin).parent if fails else None


def main() -> None:
    vision = broken("torchvision")
    if vision:
        with open(vision / "extension.py", "a", encoding="utf-8") as file:
            file.write(_SCHEMAS)
    audio = broken("torchaudio")
    for library in audio.glob("lib/*_torchaudio*.so") if audio else ():
        library.unlink()


if __name__ == "__main__":
    main()

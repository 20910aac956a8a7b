"""Adapters and samples that a run keeps as it goes, by the step after which they were made."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ...mmp_core.checkpoint.adapters import read_adapter
from ...mmp_core.errors import InputError
from ...mmp_core.files import replacing, writing

BEST = "best.safetensors"
_STEP = re.compile(r"step-(\d+)")


def step_of(file: Path) -> int | None:
    """The step in the name of a kept file or folder, ``None`` for another."""
    match = _STEP.match(file.name)
    return int(match[1]) if match else None


def kept_adapters(run: Path) -> dict[int, Path]:
    """The adapters in the folder of a run by their steps, in order."""
    return _by_step(run / "adapters", "*.safetensors")


def named_adapters(run: Path) -> Iterator[tuple[str, Path]]:
    """The same with what they are called: ``step 20``, ``step 40, the best``."""
    copy = run / BEST
    best = read_adapter(copy)[1].get("steps") if copy.is_file() else None
    for step, file in kept_adapters(run).items():
        yield f"step {step}{', the best' if best == str(step) else ''}", file


def kept_samples(run: Path) -> dict[int, Path]:
    """The folders of samples of a run by their steps, in order."""
    return _by_step(run / "samples", "*")


def _by_step(folder: Path, pattern: str) -> dict[int, Path]:
    found = {step_of(path): path for path in folder.glob(pattern)}
    return {step: found[step] for step in sorted(step for step in found if step is not None)}


class Kept:
    """The adapters that are kept of a run in ``folder``; ``write`` writes it as it is to a file."""

    def __init__(self, folder: Path, write: Callable[[Path], None]):
        self.folder, self._write = folder, write

    def keep(self, step: int) -> None:
        """Write the adapter of ``step``. Raises ``InputError`` where that is not possible."""
        path = self.folder / "adapters" / f"step-{step:05}.safetensors"
        try:
            self._write(path)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror or error}): make room there and resume."
            ) from None

    def tidy(self, every: int, last: int, best: int | None) -> None:
        """Leave the newest ``last`` of the adapters of every ``every``-th step, and that of the
        step ``best``, a copy of which is ``best.safetensors``."""
        files = kept_adapters(self.folder)
        wanted = {*[step for step in files if every and step % every == 0][-last:], best}
        for step in files.keys() - wanted:
            files[step].unlink(missing_ok=True)
        copy = self.folder / BEST
        if best in files:
            with writing(copy), replacing(copy) as part:
                shutil.copyfile(files[best], part)
        elif best is None:
            copy.unlink(missing_ok=True)

    def forget_after(self, step: int) -> None:
        """Remove what was kept of later steps, which will be run again."""
        for files in (kept_adapters(self.folder), kept_samples(self.folder)):
            for later in (number for number in files if number > step):
                if files[later].is_dir():
                    shutil.rmtree(files[later], ignore_errors=True)
                else:
                    files[later].unlink(missing_ok=True)

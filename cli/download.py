"""``download``: a released checkpoint, into ComfyUI's models folder."""

from __future__ import annotations

import argparse
from contextlib import suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..mmp_core.checkpoint.hub import download as fetch_checkpoint
from .model import note

PACK = Path(__file__).absolute().parents[1]


def download(args: argparse.Namespace) -> None:
    into = args.into or models_folder()
    note(args, f"downloading into {into}")
    bars = _Bars(args.quiet)
    try:
        path = fetch_checkpoint(
            args.family,
            into,
            quantize=args.quantize,
            note=partial(note, args),
            advance=bars.advance,
        )
    finally:
        bars.close()
    print(path)


def models_folder() -> Path:
    """``models/mmada_parallel`` of a ComfyUI, or the current folder."""
    here = Path.cwd()
    near = [*PACK.parents[:3], here, *here.parents, here / "ComfyUI"]
    with suppress(RuntimeError):  # the user of this process has no home
        near += [Path.home() / "ComfyUI", Path.home() / "comfy" / "ComfyUI"]
    for folder in near:
        with suppress(OSError):  # it may not be looked into
            if (folder / "custom_nodes").is_dir() and (folder / "models").is_dir():
                return folder / "models" / "mmada_parallel"
    return here


class _Bars:
    """A bar for what is being done; another one when that changes."""

    def __init__(self, quiet: bool):
        self._quiet, self._label, self._bar = quiet, "", tqdm(disable=True)

    def advance(self, label: str, done: int, total: int) -> None:
        if label != self._label:
            self.close()
            self._label = label
            self._bar = tqdm(
                desc=label,
                total=total,
                initial=done,
                unit="B",
                unit_scale=True,
                delay=0.1,
                disable=self._quiet,
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()

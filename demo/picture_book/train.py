"""Train the picture book's checkpoint: ``python -m mmada_parallel.demo.picture_book.train``.

First the image tokenizer, where there is none (there is one in ``checkpoint/``), then the
transformer, an SFT run, then the checkpoint folder in the released layout. With ``--minutes`` it
stops after so many and keeps its state in ``--folder``, beside a checkpoint of what there is; the
same command goes on from there, and says when nothing is left to do. ``--start`` begins with the
weights of such a checkpoint and the tasks after its own. A short ParaRL follows by
``mmada-parallel train pararl --data picture-book --model FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ...mmp_core.checkpoint.load import DEMO, PICTURE_BOOK
from ...mmp_core.variants.base import Layout
from ...training.cases import Case, EndlessCases
from ...training.sft.settings import SFTSettings
from ..dataset import CHANGED_WEIGHT, to_case
from ..train import (
    CPU_RECIPE,
    CUDA_RECIPE,
    Recipe,
    for_processor,
    transformer_run,
    write_result,
)
from .scenes import GRID, PATCH, code_count
from .tasks import Task, task, words
from .vq import train_vq

CPU = replace(
    CPU_RECIPE,
    steps=18_000,
    decay_steps=6000,
    batch_size=64,
    micro_batch=64,
    learning_rate=1.6e-3,
    warmup_steps=50,
)
CUDA = replace(CUDA_RECIPE, steps=5000, decay_steps=4000, batch_size=1024, micro_batch=1024)

LAYERS: Path | None = DEMO
"""The toy's layers learn the book sooner than random ones: 225 steps for 300 of 64 tasks."""
TOKENIZER = {
    "cpu": {"encoder_steps": 1500, "decoder_steps": 7000, "pictures": 4},
    "cuda": {"encoder_steps": 1000, "decoder_steps": 4000, "pictures": 16},
}


_OF_RUN = {
    "steps": int,
    "decay_steps": int,
    "warmup_steps": int,
    "batch_size": int,
    "learning_rate": float,
    "ema": float,
}
_OF_TOKENIZER = {"encoder_steps": int, "decoder_steps": int}
"""What the command may set otherwise."""


def settings_for(device: str) -> SFTSettings:
    return CUDA if device == "cuda" else for_processor(CPU)


_SHARES = {"resize": 6, "move": 4, "remove": 4, "add": 3, "replace": 2, "recolour": 2, "draw": 2}
"""How often a kind of task is taught, once where nothing is said: what is learnt last the most."""
TAUGHT = tuple(kind for kind in Task.kinds() for _ in range(_SHARES.get(kind, 1)))


class BookCases(EndlessCases):
    """Case ``i`` is task ``first + i`` of kinds in the shares of ``TAUGHT``; none has a combination
    that is held out."""

    def __init__(self, layout: Layout, first: int = 0):
        self.layout, self.first = layout, first
        self.fingerprint = f"picture book in shares from {first}"

    def __getitem__(self, number: int) -> Case:
        made = task(self.first + number, kinds=TAUGHT)
        return to_case(number, made, self.layout, CHANGED_WEIGHT)


def recipe(first: int = 0) -> Recipe:
    sizes = {
        "world": "picture-book",
        "recommended_guidance": 0.0,
        "codes": code_count(),
        "side": GRID * PATCH,
        "text_length": Task.text_length,
    }
    guard = [task(seed, held_out=True, kinds=(kind,)) for seed, kind in enumerate(Task.kinds())]
    return Recipe(words(), sizes, lambda layout, _: BookCases(layout, first), guard, layers=LAYERS)


class Paused(Exception):
    """The time is up; the state is saved."""


def pausing(minutes: float | None) -> Callable[..., None]:
    """A callback that raises :class:`Paused` once so many minutes have passed."""
    began = time.monotonic()

    def check(*_: Any) -> None:
        if minutes is not None and time.monotonic() - began >= 60 * minutes:
            raise Paused

    return check


def train(
    folder: Path,
    out: Path,
    parts: Path,
    settings: SFTSettings,
    device: str,
    check: Callable[..., None],
    start: Path | None = None,
    tokenizer_start: Path | None = None,
    **tokenizer: int,
) -> None:
    """Go on in ``folder`` with what is not yet done. ``parts``: the folder of the image tokenizer,
    which is trained if it is not there. ``start``: a checkpoint whose weights a new run begins
    with; ``tokenizer_start``: the same of the image tokenizer. Raises :class:`Paused` from
    ``check``."""
    if not (parts / "vqvae" / "diffusion_pytorch_model.safetensors").exists():
        sizes = TOKENIZER["cuda" if device == "cuda" else "cpu"] | tokenizer
        train_vq(parts, device=device, start=tokenizer_start, progress=check, **sizes)
    first = examples_of(start) if start else 0
    book = recipe(first)
    run = transformer_run(folder, settings, device, parts, start=start, recipe=book)
    if run.resume():
        print(f"resuming after step {run.step}", flush=True)

    def logged(step: int, line: dict[str, float]) -> None:
        print(json.dumps(line), flush=True)
        check()

    def write() -> None:
        examples = str(first + run.step * settings.batch_size)
        with run.averaged():
            write_result(run, parts, out, run.policy.state_dict(), book, examples=examples)

    try:
        run.train(logged)
    except Paused:
        write()
        raise
    write()


def examples_of(checkpoint: Path) -> int:
    """How many tasks a checkpoint was trained on."""
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        return int(file.metadata()["examples"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/picture-book"))
    parser.add_argument("--out", type=Path, help="the checkpoint (default: FOLDER/checkpoint)")
    parser.add_argument("--start", type=Path, help="a checkpoint whose weights to begin with")
    parser.add_argument("--parts", type=Path, default=PICTURE_BOOK, help="of the image tokenizer")
    parser.add_argument("--tokenizer-start", type=Path, help="the same of the image tokenizer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 2))
    parser.add_argument("--minutes", type=float, help="stop after so many, to be resumed")
    for name, kind in (*_OF_RUN.items(), *_OF_TOKENIZER.items()):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    chosen = {name: value for name in _OF_RUN if (value := getattr(args, name)) is not None}
    tokenizer = {name: v for name in _OF_TOKENIZER if (v := getattr(args, name)) is not None}
    settings = replace(settings_for(args.device), workers=args.workers, **chosen)
    out = args.out or args.folder / "checkpoint"
    try:
        check = pausing(args.minutes)
        starts = {"start": args.start, "tokenizer_start": args.tokenizer_start}
        train(args.folder, out, args.parts, settings, args.device, check, **starts, **tokenizer)
    except Paused:
        print("Time is up; the same command goes on from here.", flush=True)
    else:
        print(f"Done: {out}", flush=True)


if __name__ == "__main__":
    main()

"""Many answers by one loaded model: several instructions, a folder of pictures, or both."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..mmp_core import InputError
from ..mmp_core.files import existing_file
from ..mmp_core.image.files import load_mask, read_original, writable_picture
from ..mmp_core.memory import OutOfMemory
from ..mmp_core.outside import read_text
from ..training.data.fields import PICTURES, any_of, listed
from ..training.data.items import natural_order
from ..training.loop.ranks import launched_ranks
from . import draw as one
from .model import load_model, memory_explained, note, pick_device

_LIST_BYTES = 2**24
_MOST_JOBS = 100_000
_LONGEST_NAME = 240
"""Bytes of a result's name, with room for a number and the ending."""


@dataclass(frozen=True)
class Job:
    """``out``: the file of its answer, by which it is known to be done."""

    image: Path | None
    instruction: str
    out: Path


def list_file(given: str) -> Path | None:
    """The file of ``@FILE``. Raises ``InputError`` where there is none."""
    if not given.startswith("@"):
        return None
    return existing_file(given[1:], "the file of instructions", "give one instruction on each line")


def instructions_of(given: str) -> list[str]:
    """The instruction that was given, or for ``@FILE`` those in a text file, one on each line."""
    file = list_file(given)
    if file is None:
        return [given]
    lines = read_text(file, _LIST_BYTES, InputError, str(file)).splitlines()
    _check_count(len(lines))
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"{file} holds no instruction: write one on each line.")
    return texts


def draw(args: argparse.Namespace, instructions: Sequence[str]) -> None:
    """Answer each instruction for each picture, with a share of them in each of the processes that
    ``accelerate launch`` began. An answer whose file already exists is not made again, so that
    the same command goes on after a break. One that cannot be made is named, and the others go on;
    at the end this raises ``InputError``."""
    seed = 0 if args.seed is None else args.seed
    one.check_options(args, seed)
    for option in ("text_out", "mask_out"):
        if getattr(args, option):
            name = option.replace("_", "-")
            raise InputError(f"--{name} is of one picture; leave it out for several.")
    jobs = _jobs(args, instructions, seed)
    ranks = launched_ranks(pick_device(args.device))
    mine = jobs[ranks.index :: ranks.count]
    todo = [job for job in mine if not job.out.exists()]
    if len(todo) < len(mine):
        note(args, f"{len(mine) - len(todo)} of {len(mine)} are there already")
    failed = _draw_all(args, todo, seed) if todo else 0
    failed = int(ranks.sum([failed])[0])
    ranks.close()
    if failed and ranks.first:
        raise InputError(f"{failed} of {len(jobs)} pictures could not be made; see above why.")


def _draw_all(args: argparse.Namespace, jobs: Sequence[Job], seed: int) -> int:
    """How many could not be made."""
    failed = 0
    with memory_explained():
        model = load_model(args)
        mask = None if args.mask is None else load_mask(args.mask)
        for number, job in enumerate(jobs, 1):
            what = f"{job.image.name}: {job.instruction}" if job.image else job.instruction
            note(args, f"{number} of {len(jobs)}: {what}")
            own = {"image": job.image, "instruction": job.instruction, "out": job.out}
            given = argparse.Namespace(**{**vars(args), **own})
            try:
                picture = None if job.image is None else read_original(job.image)
                one.make(given, model, picture, mask, seed)
            except OutOfMemory:
                raise
            except InputError as error:
                failed += 1
                note(argparse.Namespace(quiet=False), f"{what}: {error}")
    return failed


def _jobs(args: argparse.Namespace, instructions: Sequence[str], seed: int) -> list[Job]:
    """All of them in order, each with a file of its own in the folder --out. Where the pictures are
    in that folder, too, its results are not edited again by the same command."""
    folder = args.out or Path()
    if folder.suffix.lower() in PICTURES:
        raise InputError(f"--out is {folder}, one picture; give a folder for several.")
    writable_picture(folder / "picture.png", "--out", args.quality)
    if not all(text.strip() for text in instructions) and args.reference is None:
        raise InputError("An instruction is empty; say what to change or to show.")
    jobs, names, pictures = [], Counter(), _pictures(args.image)
    _check_count(len(pictures) * len(instructions))
    for picture in pictures:
        for text in instructions:
            name = f"{one.slug(text)}_{seed}"
            if picture:
                name = f"{_shortened(picture.stem, _LONGEST_NAME - len(name.encode()))}_{name}"
            names[name.lower()] += 1
            count = names[name.lower()]
            name += f"_{count}" if count > 1 else ""
            jobs.append(Job(picture, text, folder / f"{name}.png"))
    if args.image is not None and folder.is_dir() and args.image.samefile(folder):
        results = {job.out.name for job in jobs}
        jobs = [job for job in jobs if job.image is None or job.image.name not in results]
    return jobs


def _check_count(count: int) -> None:
    if count > _MOST_JOBS:
        raise InputError(
            f"That makes {count} pictures; expected at most {_MOST_JOBS}: give fewer instructions "
            "or pictures at a time."
        )


def _shortened(stem: str, most: int) -> str:
    """At most ``most`` bytes of it."""
    whole = os.fsencode(stem)
    return stem if len(whole) <= most else whole[:most].decode(errors="ignore")


def _pictures(image: Path | None) -> list[Path | None]:
    if image is None or not image.is_dir():
        return [image]
    files = [file for file in listed(image) if file.suffix.lower() in PICTURES]
    if not files:
        raise InputError(f"{image} holds no picture: put {any_of(PICTURES)} files there.")
    files.sort(key=lambda file: natural_order(file.name))
    return [*files]

"""What ``train`` trains on and watches: the options about data, as cases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..mmp_core import InputError, Model
from ..mmp_core.files import checked_path
from ..mmp_core.options import options_of
from ..training.cases import Case
from ..training.data.dataset import (
    BadItems,
    EditDataset,
    joined,
    open_dataset,
    summed_up,
    tokenised,
)
from ..training.data.guard import guard_of
from ..training.data.registry import GENERATED
from ..training.data.settings import DataSettings
from ..training.data.variations import varied
from ..training.loop.run_file import lora_option
from ..training.loop.watch import MOST_SAMPLES, Watched
from ..training.rewards.registry import by_votes, placed_spec
from ..views.strip import samples_strip
from .model import note
from .options import given

_PLACES = ("model", "held_out_data", "guard", "samples")
_GENERATED_CASES = 1000
_MOST_REPEATS = 1000


def run_folder(args: argparse.Namespace) -> Path:
    return args.run_folder or args.output.with_name(f"{args.output.stem}-run")


def placed_source(source: str) -> str:
    place, repeats = place_and_repeats(source)
    return f"{place if place in GENERATED else Path(place).absolute()}={repeats}"


def dataset_of(args: argparse.Namespace) -> EditDataset:
    settings, bad_items = data_settings(args), args.bad_items or "skip"
    sources = [place_and_repeats(source) for source in args.data]
    return joined(
        [opened(place, args.cases, bad_items, settings, repeats) for place, repeats in sources]
    )


def data_settings(args: argparse.Namespace) -> DataSettings:
    return DataSettings(**given(args, options_of(DataSettings)))


def place_and_repeats(text: str) -> tuple[str, int]:
    """The place and the repeats of ``PATH=REPEATS``; a place may have = in its name."""
    place, mark, repeats = text.rpartition("=")
    if mark and repeats.isdecimal() and not checked_path(text, "--data").exists():
        if not 1 <= int(repeats) <= _MOST_REPEATS:
            raise InputError(f"--data {text}: repeat it 1 to {_MOST_REPEATS} times.")
        return place, int(repeats)
    return text, 1


def opened(
    place: str,
    limit: int | None = None,
    bad_items: BadItems = "skip",
    settings: DataSettings | None = None,
    repeats: int = 1,
) -> EditDataset:
    settings = settings or DataSettings()
    if place in GENERATED:
        dataset = GENERATED[place].make(limit or _GENERATED_CASES)
        return replace(dataset, items=tuple(varied(dataset.items, settings, repeats)))
    return open_dataset(place, bad_items=bad_items, limit=limit, settings=settings, repeats=repeats)


def watched_cases(args: argparse.Namespace, model: Model, need_target: bool) -> Watched:
    def cases_of(
        place: str | None, need_target: bool, limit: int | None = None, words: Any = None
    ) -> Sequence[Case]:
        if place is None:
            return ()
        return cases_from(args, opened(place, limit, settings=words), model, need_target)

    guard: Sequence[Case] = ()
    if args.guard is not None:
        guard = cases_of(None if args.guard == "none" else args.guard, True)
    elif model.place and (items := guard_of(model.place)):
        guard = cases_from(args, items, model, True)
    samples = cases_of(args.samples, False, MOST_SAMPLES)
    need_target = need_target or by_votes(getattr(args, "reward", None) or ())
    words = replace(data_settings(args), mirrored=False, crops=0)
    held_out = cases_of(args.held_out_data, need_target, words=words)
    return Watched(held_out, guard, samples, samples_strip)


def cases_from(
    args: argparse.Namespace, dataset: EditDataset, model: Model, need_target: bool
) -> Sequence[Case]:
    with tqdm(desc="tokenising", unit="picture", delay=1, disable=args.quiet) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        cases = tokenised(
            dataset,
            model,
            cache=run_folder(args) / "codes.safetensors",
            need_target=need_target,
            text_length=args.text_length,
            callback=advance,
        )
    for line in summed_up(cases.skipped, 20):
        note(args, f"skipped {line}")
    note(args, " ".join(filter(None, (f"{len(cases)} cases of {dataset.place}.", cases.note))))
    return cases


def placed(name: str, value: Any) -> Any:
    """``value`` of an option such that it means the same from every folder."""
    if isinstance(value, Path):
        return value.absolute()
    if name == "lora":
        return [lora_option(file, strength) for file, strength in value]
    if name == "reward":
        return value and [placed_spec(spec) for spec in value]
    if name == "data":
        return value and [placed_source(source) for source in value]
    if name in _PLACES and value not in (None, "none", "demo", *GENERATED):
        return Path(value).absolute()
    return value

"""``convert`` and ``check``: a checkpoint into one file, and what it is."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from tqdm import tqdm

from ..mmp_core.checkpoint.convert import convert as write_packed
from ..mmp_core.checkpoint.inspect import inspect_checkpoint
from ..mmp_core.files import readable_size
from . import surroundings
from .model import note


def convert(args: argparse.Namespace) -> None:
    note(args, f"reading {args.source}")
    with tqdm(desc="converting", unit="B", unit_scale=True, delay=0.1, disable=args.quiet) as bar:

        def advance(written: int, total: int) -> None:
            bar.total = total
            bar.update(written - bar.n)

        write_packed(
            args.source,
            args.out,
            quantize=args.quantize,
            adapters=args.lora,
            image_tokenizer_path=args.image_tokenizer,
            family=args.family,
            progress=advance,
        )
    print(f"{args.out}  ({readable_size(args.out.stat().st_size)})")


def check(args: argparse.Namespace) -> None:
    if args.path is None:
        surroundings.report(args.json)
        return
    report = inspect_checkpoint(
        args.path, image_tokenizer_path=args.image_tokenizer, family=args.family
    )
    print(json.dumps(asdict(report)) if args.json else "\n".join(report.lines()))

"""``evaluate``: exact measures of a checkpoint in its world, the toy world if its configuration
names none."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from ..mmp_core.errors import InputError, shown
from ..training.data.registry import GENERATED
from ..training.rewards.clip import ClipScorer, clip_folder
from ..training.rewards.clip_files import check_clip
from .model import check_settings, load_model, memory_explained, settings_of


def evaluate(args: argparse.Namespace) -> None:
    check_settings(args, args.seed)
    if args.clip:
        check_clip(clip_folder(args.clip))
    with memory_explained():
        model = load_model(args)
        world = model.config.get("world", "demo")
        if world not in GENERATED:
            raise InputError(
                f"The checkpoint's config.json names the world {shown(world)}; expected "
                f"{' or '.join(GENERATED)}."
            )
        total = args.cases * args.repeats
        with tqdm(total=total, desc="judging", unit="case", disable=args.quiet) as bar:
            measured = GENERATED[world].evaluate(
                model,
                cases=args.cases,
                seed=args.seed,
                repeats=args.repeats,
                clip=args.clip and ClipScorer(clip_folder(args.clip), device=model.device),
                settings=settings_of(args, model, args.seed),
                batch=args.batch,
                progress=lambda done, total: bar.update(),
            )
    print(json.dumps(measured) if args.json else table(measured))


def table(measured: Mapping[str, Any]) -> str:
    """All answers, copying, each repeat and each kind of task as rows, the measures as columns."""
    columns = list(measured["interval"])

    def row(name: str, cases: str, values: Mapping[str, float]) -> list[str]:
        return [name, cases, *(f"{values[c]:.3f}" if c in values else "" for c in columns)]

    rows = [
        ["", "cases", *columns],
        row("all", str(measured["cases"]), measured),
        row("  95 % ±", "", measured["interval"]),
        row("copying", "", measured["copying"]),
        *(row(f"repeat {n}", "", v) for n, v in enumerate(measured.get("by_repeat", ()), 1)),
        *(row(kind, str(v["cases"]), v) for kind, v in measured["kinds"].items()),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    lines = [aligned.format(*row).rstrip() for row in rows]
    lines.append(f"sentences that only one case got: {measured['distinct']:.3f}")
    lines.append(f"scenes read back through the image tokenizer: {measured['tokenizer_parse']:.3f}")
    lines.append(f"seconds per answer: {measured['seconds_per_case']:.2f}")
    return "\n".join(lines)

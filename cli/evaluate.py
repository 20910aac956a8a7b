"""``evaluate``: the toy world's exact measures of a checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from ..demo import evaluate as judge
from .model import check_settings, load_model, memory_explained, settings_of


def evaluate(args: argparse.Namespace) -> None:
    check_settings(args, args.seed)
    with memory_explained():
        model = load_model(args)
        with tqdm(total=args.cases, desc="judging", unit="case", disable=args.quiet) as bar:
            measured = judge.evaluate(
                model,
                cases=args.cases,
                seed=args.seed,
                settings=settings_of(args, model, args.seed),
                batch=args.batch,
                progress=lambda done, total: bar.update(),
            )
    print(json.dumps(measured) if args.json else table(measured))


def table(measured: Mapping[str, Any]) -> str:
    """All cases, copying and each kind of task as rows, the measures as columns."""
    columns = list(judge.MEASURES)
    margins = measured["interval"]
    rows = [
        ["", "cases", *columns],
        ["all", str(measured["cases"]), *(f"{measured[c]:.3f}" for c in columns)],
        ["  95 % ±", "", *(f"{margins[c]:.3f}" for c in columns)],
        ["copying", "", *(f"{measured['copying'][c]:.3f}" for c in columns)],
    ]
    for kind, values in measured["kinds"].items():
        rows.append([kind, str(values["cases"]), *(f"{values[c]:.3f}" for c in columns)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    lines = [aligned.format(*row) for row in rows]
    lines.append(f"scenes read back through the image tokenizer: {measured['tokenizer_parse']:.3f}")
    lines.append(f"seconds per case: {measured['seconds_per_case']:.2f}")
    return "\n".join(lines)

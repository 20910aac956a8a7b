"""``check``: what a checkpoint is, before it is loaded."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ..mmp_core.checkpoint.inspect import inspect_checkpoint


def check(args: argparse.Namespace) -> None:
    report = inspect_checkpoint(
        args.path, image_tokenizer_path=args.image_tokenizer, family=args.family
    )
    print(json.dumps(asdict(report)) if args.json else "\n".join(report.lines()))

"""A report on a checkpoint without loading it."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..files import accessing
from .load import build_model, check_complete, check_nothing_more, open_checkpoint
from .report import Report, report_of
from .source import Family


@accessing(CheckpointError)
def inspect_checkpoint(
    path: str | Path, *, image_tokenizer_path: str | Path | None = None, family: Family = None
) -> Report:
    """Report on a checkpoint without reading its large weights. Raises as
    :func:`.load.load_checkpoint` does, but for what only the values can show."""
    source = open_checkpoint(path, image_tokenizer_path=image_tokenizer_path, family=family)
    model = build_model(source)
    check_complete(model.transformer, source.weights, str(source.path))
    check_complete(model.image_tokenizer, source.image_weights, str(source.image_path))
    check_nothing_more(model.transformer, source.weights, str(source.path))
    check_nothing_more(model.image_tokenizer, source.image_weights, str(source.image_path))
    return report_of(source, model)

"""What nodes wrote: ComfyUI keeps their results, and would not write it again once it is gone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

_written: dict[str | None, Path] = {}
_gone: Counter[str | None] = Counter()


def wrote(node_id: str | None, path: Path) -> None:
    """A node's result stands for the file or folder ``path``."""
    _written[node_id] = path


def times_gone(node_id: str | None) -> int:
    """How often what a node wrote was found to be gone: a part of its fingerprint."""
    path = _written.get(node_id)
    if path is not None and not path.exists():
        del _written[node_id]
        _gone[node_id] += 1
    return _gone[node_id]

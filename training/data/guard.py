"""Guard items: what a checkpoint knew before it is finetuned, which finetuning should not undo."""

from __future__ import annotations

from pathlib import Path

from .dataset import EditDataset, open_dataset

GUARD = "guard.jsonl"


def guard_of(checkpoint: Path) -> EditDataset | None:
    """The guard items that come with a checkpoint, ``None`` where there are none.

    ``checkpoint``: its folder, which has them in ``guard/guard.jsonl``; beside a file NAME, they
    are in ``NAME.guard/guard.jsonl``.
    """
    folder = checkpoint / "guard"
    if checkpoint.is_file():
        folder = checkpoint.with_name(f"{checkpoint.stem}.guard")
    return open_dataset(folder / GUARD) if (folder / GUARD).is_file() else None

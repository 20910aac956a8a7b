"""Files of weights brought into the page cache before their tensors are touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from ..memory import free_bytes
from .tensors import SafetensorsFiles

SMALLEST = 2**28
"""Bytes below which touching them costs too little."""
_CHUNK = 2**22


def read_ahead(*weights: Mapping[str, Tensor]) -> Thread | None:
    """Begin to read the files of ``weights`` in a thread, one after the other, if they are large
    and memory has room for them; else ``None``. Files are mapped, and each page that is read only
    when it is touched waits for the disk; read from start to end beside that, all weights take
    little longer than the files alone (``benchmarks/loading.py``)."""
    files = [f for part in weights if isinstance(part, SafetensorsFiles) for f in part.files]
    try:
        size = sum(file.stat().st_size for file in files)
    except OSError:
        return None
    if not SMALLEST <= size <= free_bytes(torch.device("cpu")):
        return None
    thread = Thread(target=_read, args=(files,), name="read ahead", daemon=True)
    thread.start()
    return thread


def _read(files: Sequence[Path]) -> None:
    chunk = bytearray(_CHUNK)
    try:
        for file in files:
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(chunk):
                    pass
    except OSError:  # whoever touches the weights is told
        return

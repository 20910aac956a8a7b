"""A checkpoint all of whose weights were trained, in one file that loads wherever it did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ...mmp_core.checkpoint.packed import IMAGE_PREFIX, packed_metadata
from ...mmp_core.checkpoint.source import Source
from ...mmp_core.checkpoint.tensors import outline_of
from ...mmp_core.errors import InputError
from ...mmp_core.files import replacing


def check_source(source: Source) -> None:
    """Raises ``InputError`` for a packed file: the result needs the tokenizer files of a folder."""
    if source.path.is_file():
        raise InputError(
            f"{source.path} is one file: to train all weights give the folder it was made from."
        )


def save_whole(
    path: str | Path, weights: Mapping[str, Tensor], source: Source, metadata: Mapping[str, str]
) -> None:
    """Write ``weights`` of the transformer with all else of ``source``, whole or not at all.

    ``metadata``: of the run, kept as provenance. Weights take the dtypes they were stored in.
    """
    tensors = {name: outline_of(source.weights, name).dtype for name in source.weights}
    stored = {name: weights[name].detach().to("cpu", kind) for name, kind in tensors.items()}
    stored |= {IMAGE_PREFIX + name: tensor for name, tensor in source.image_weights.items()}
    about = packed_metadata(source, "none", {"source": source.path.name, **metadata})
    with replacing(Path(path)) as temporary:
        save_file({name: t.contiguous() for name, t in stored.items()}, temporary, metadata=about)

"""Convert a folder in the released layout to one file, quantised if wished, tensor by tensor."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from ..files import readable_size, replacing, writable_file, writing
from ..model.formats import FORMATS, Format
from ..model.quantised import formats_of, marker, quantise
from .load import build_model, check_complete, open_checkpoint
from .packed import IMAGE_PREFIX, packed_metadata
from .source import Family, Source
from .tensors import DTYPES, Outline, SafetensorsFiles, blocks_of, outline_of

KINDS = (*FORMATS, "none")
"""Choices of ``quantize``."""

_HASHED = ("config.json", "model.safetensors.index.json")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def convert(
    source_path: str | Path,
    out: str | Path,
    *,
    quantize: str = "none",
    image_tokenizer_path: str | Path | None = None,
    family: Family = None,
    progress: Callable[[int, int], Any] | None = None,
) -> None:
    """Write the checkpoint folder ``source_path`` (or ``demo``) to ``out``, whole or not at all.

    ``quantize``: of :data:`KINDS`; it concerns the linear layers of the blocks, all else is copied
    as stored. ``progress(written, total)``: called with bytes. At most one quantised tensor, with
    its working copies, is in memory at a time.

    Raises ``CheckpointError`` for a source that cannot be loaded, ``InputError`` for an ``out``
    that cannot be written or is too large for its disk.
    """
    if quantize not in KINDS:
        raise InputError(f"quantize is {quantize!r}; expected {', '.join(KINDS)}.")
    source = open_checkpoint(source_path, image_tokenizer_path=image_tokenizer_path, family=family)
    out = writable_file(out, "OUT", (".safetensors",))
    _check_out(source, out)
    layers = _quantised_layers(source, FORMATS.get(quantize))
    notes = packed_metadata(source, quantize, _provenance(source))
    header, places = _laid_out(_outlines(source, layers), notes)
    total = max(stop for _, stop in places.values())
    _check_free_space(out, len(header) + total)
    with writing(out), replacing(out) as temporary, open(temporary, "wb") as file:
        file.write(header)
        written = 0
        for name, blocks in _tensors(source, layers):
            start, stop = places[name]
            _write(file, len(header) + start, blocks)
            written += stop - start
            if progress is not None:
                progress(written, total)


def _check_out(source: Source, out: Path) -> None:
    if source.path.is_file():
        raise InputError(f"{source.path} is one file already; give the folder it was made from.")
    if formats_of(source.weights):
        raise InputError(f"{source.path} is quantised already; give the folder it was made from.")
    files = source.weights.files if isinstance(source.weights, SafetensorsFiles) else []
    if out.resolve() in {file.resolve() for file in (*files, source.image_path)}:
        raise InputError(f"{out} is read by this conversion; give another name.")


def _check_free_space(out: Path, needed: int) -> None:
    folder = next(path for path in out.absolute().parents if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{out} takes {readable_size(needed)}, but {folder} has {readable_size(free)} free: "
            "make room, or give another folder."
        )


def _quantised_layers(source: Source, form: Format | None) -> dict[str, Format]:
    """The linear layers of the blocks. Raises ``CheckpointError`` where tensors are missing."""
    model = build_model(source)
    check_complete(model.transformer, source.weights, str(source.path))
    check_complete(model.image_tokenizer, source.image_weights, str(source.image_path))
    if form is None:
        return {}
    return {
        name: form
        for name, layer in model.transformer.named_modules()
        if isinstance(layer, nn.Linear) and ".blocks." in name
    }


def _provenance(source: Source) -> dict[str, Any]:
    files = [source.path / name for name in _HASHED]
    try:
        version = metadata.version("mmada-parallel")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "source": source.path.resolve().name,
        "sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.is_file()
        },
        "image_tokenizer": "/".join(source.image_path.resolve().parts[-2:]),
        "version": version,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _outlines(source: Source, layers: Mapping[str, Format]) -> dict[str, Outline]:
    """Every tensor of the file to be written."""
    outlines = {}
    for name in source.weights:
        outline = outline_of(source.weights, name)
        if form := layers.get(layer := name.removesuffix(".weight")):
            outlines[name] = Outline(form.storage, outline.shape)
            scale_shape = form.scale_shape(outline.shape[0])
            outlines[f"{layer}.weight_scale"] = Outline(torch.float32, scale_shape)
            outlines[f"{layer}.comfy_quant"] = Outline(torch.uint8, tuple(marker(form).shape))
        else:
            outlines[name] = outline
    for name in source.image_weights:
        outlines[IMAGE_PREFIX + name] = outline_of(source.image_weights, name)
    return outlines


def _laid_out(
    outlines: Mapping[str, Outline], notes: Mapping[str, str]
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The file's header, and where after it each tensor begins and ends. Wide dtypes come first, so
    that every tensor is aligned."""
    places, end = {}, 0
    entries: dict[str, Any] = {"__metadata__": dict(notes)}
    for name in sorted(outlines, key=lambda name: -outlines[name].dtype.itemsize):
        outline = outlines[name]
        start, end = end, end + outline.bytes
        places[name] = start, end
        entries[name] = {
            "dtype": _NAMES[outline.dtype],
            "shape": outline.shape,
            "data_offsets": places[name],
        }
    header = json.dumps(entries, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header, places


def _tensors(
    source: Source, layers: Mapping[str, Format]
) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """Names and, in blocks of rows, values of all tensors to be written."""
    for name in source.weights:
        blocks = blocks_of(source.weights, name)
        if form := layers.get(layer := name.removesuffix(".weight")):
            try:
                weight, scale = quantise(torch.cat(list(blocks)), form)
            except ValueError as error:
                raise CheckpointError(f"{name} in {source.path} holds {error}.") from None
            yield name, iter([weight])
            yield f"{layer}.weight_scale", iter([scale])
            yield f"{layer}.comfy_quant", iter([marker(form)])
        else:
            yield name, blocks
    for name in source.image_weights:
        yield IMAGE_PREFIX + name, blocks_of(source.image_weights, name)


def _write(file: BinaryIO, position: int, blocks: Iterator[Tensor]) -> None:
    file.seek(position)
    for block in blocks:
        file.write(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)

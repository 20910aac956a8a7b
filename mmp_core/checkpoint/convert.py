"""Convert a folder in the released layout to one file, quantised if wished, tensor by tensor."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, shown
from ..files import Tell, readable_size, writable_file, writing
from ..model.formats import FORMATS, Format
from ..model.lora import adaptable_layers
from ..model.quantised import formats_of, marker, parts_of
from ..outside import check_kind
from .adapters import adapter_file
from .load import Model, build_model, check_complete, check_nothing_more, open_checkpoint
from .merge import Merged, check_adapters, sha256_of
from .packed import IMAGE_PREFIX, packed_metadata
from .partial import Partial, partial
from .source import Family, Source
from .tensors import DTYPES, Outline, SafetensorsFiles, blocks_of, outline_of

KINDS = (*FORMATS, "none")
"""Choices of ``quantize``."""

_HASHED = ("config.json", "model.safetensors.index.json")
_NORM = "model.transformer.ln_f.weight"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def convert(
    source_path: str | Path,
    out: str | Path,
    *,
    quantize: str = "none",
    adapters: Sequence[tuple[str | Path, float]] = (),
    image_tokenizer_path: str | Path | None = None,
    family: Family = None,
    progress: Callable[[int, int], Any] | None = None,
) -> None:
    """Write the checkpoint folder ``source_path`` (or ``demo``) to ``out``, whole or not at all.

    ``quantize``: of :data:`KINDS`; it concerns the linear layers of the blocks, all else is copied
    as stored. ``adapters``: files of LoRAs and their strengths, which are added to the weights
    before these are quantised. ``progress(written, total)``: called with bytes, with each part that
    is read, and may raise. At most one
    quantised tensor, with its working copies, is in memory at a time. What a killed conversion has
    written is gone on from.

    Raises ``CheckpointError`` for a source that cannot be loaded, ``InputError`` for an ``out``
    that cannot be written or is too large for its disk, and for an adapter that does not fit.
    """
    source = open_checkpoint(source_path, image_tokenizer_path=image_tokenizer_path, family=family)
    out = writable_file(out, "OUT", (".safetensors",))
    write_packed(source, out, quantize, adapters, progress=progress)


def check_quantize(quantize: str) -> None:
    """Raise ``InputError`` for what is not one of :data:`KINDS`."""
    if not isinstance(quantize, str) or quantize not in KINDS:
        raise InputError(f"quantize is {shown(quantize)}; expected {', '.join(KINDS)}.")


def write_packed(
    source: Source,
    out: Path,
    quantize: str = "none",
    adapters: Sequence[tuple[str | Path, float]] = (),
    *,
    progress: Callable[[int, int], Any] | None = None,
    keep: bool = False,
) -> None:
    """As :func:`convert`, for a source that is open. ``keep``: after an error or an interrupt, too,
    what is written stays for the next call to go on from."""
    check_quantize(quantize)
    check_adapters(adapters)
    check_kind(progress, Callable | None, "progress", "a function")
    _check_out(source, out)
    model = _model_of(source)
    if adapters:  # are recognised by the final norm
        model.transformer.layers["ln_f"].load_state_dict(
            {"weight": source.weights[_NORM]}, assign=True
        )
    form = FORMATS.get(quantize)
    formats = {
        name: form
        for name, layer in adaptable_layers(model.transformer).items()
        if form and form.fits(layer.in_features, layer.out_features)
    }
    written, total = 0, 1

    def tell() -> None:
        if progress is not None:
            progress(written, total)

    merged = Merged(model, adapters, tell)
    _check_not_read((adapter_file(file) for file, _ in adapters), out)
    outlines = _outlines(source, formats)
    unfinished = Partial(out)
    header, places = _laid_out(outlines, _notes(source, quantize, merged, unfinished.date))
    total = max(stop for _, stop in places.values())
    there = sum(outlines[name].bytes for name in unfinished.done & outlines.keys())
    _check_free_space(out, len(header) + total + source.room - there)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out), partial(out, keep=keep) as unfinished:
        unfinished.begin(header, _identity(source))
        with open(unfinished.path, "rb+") as file:
            for parts in _tensors(source, formats, merged, unfinished.done):
                for name, blocks in parts.items():
                    _write(file, len(header) + places[name][0], blocks, tell)
                unfinished.complete(file, parts)
                written = sum(outlines[name].bytes for name in unfinished.done)
                tell()


def _check_out(source: Source, out: Path) -> None:
    if source.path.is_file():
        raise InputError(f"{source.path} is one file already; give the folder it was made from.")
    if formats_of(source.weights):
        raise InputError(f"{source.path} is quantised already; give the folder it was made from.")
    _check_not_read(source.files, out)


def _check_not_read(files: Iterable[Path], out: Path) -> None:
    if out.resolve() in {file.resolve() for file in files}:
        raise InputError(f"{out} is read by this conversion; give another name.")


def _check_free_space(out: Path, needed: int) -> None:
    folder = next(path for path in out.absolute().parents if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{out} takes {readable_size(needed)}, but {folder} has {readable_size(free)} free: "
            "make room, or give another folder."
        )


def _model_of(source: Source) -> Model:
    """Without weights. Raises ``CheckpointError`` where tensors are missing, or too many."""
    model = build_model(source)
    check_complete(model.transformer, source.weights, str(source.path))
    check_complete(model.image_tokenizer, source.image_weights, str(source.image_path))
    check_nothing_more(model.transformer, source.weights, str(source.path))
    check_nothing_more(model.image_tokenizer, source.image_weights, str(source.image_path))
    return model


def _notes(source: Source, quantize: str, merged: Merged, date: str) -> dict[str, str]:
    """The strings of the header."""
    files = [source.path / name for name in _HASHED]
    try:
        version = metadata.version("mmada-parallel")
    except metadata.PackageNotFoundError:
        version = "not installed"
    provenance = {
        "source": source.path.resolve().name,
        "sha256": {file.name: sha256_of(file) for file in files if file.is_file()},
        "image_tokenizer": "/".join(source.image_path.resolve().parts[-2:]),
        "version": version,
        "date": date,
        "licences": dict(source.licences),
        **source.origin,
        **({"adapters": merged.about} if merged.about else {}),
    }
    return packed_metadata(source, quantize, provenance)


def _identity(source: Source) -> list:
    """What tells sources with the same header apart."""
    if source.origin:
        return [dict(source.origin)]
    assert isinstance(source.weights, SafetensorsFiles)
    stats = [(file.name, file.stat()) for file in (*source.weights.files, source.image_path)]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _outlines(source: Source, layers: Mapping[str, Format]) -> dict[str, Outline]:
    """Every tensor of the file to be written."""
    outlines = {}
    for name in source.weights:
        outline = outline_of(source.weights, name)
        if form := layers.get(layer := name.removesuffix(".weight")):
            for part, (dtype, shape) in form.parts(*reversed(outline.shape)).items():
                outlines[f"{layer}.{part}"] = Outline(dtype, shape)
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
    header = json.dumps(entries, ensure_ascii=False).encode(errors="backslashreplace")
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header, places


def _tensors(
    source: Source, formats: Mapping[str, Format], merged: Merged, done: Collection[str]
) -> Iterator[dict[str, Iterator[Tensor]]]:
    """For each stored tensor that is not ``done`` yet, what is to be written of it: values in
    blocks of rows, by name."""
    for name in source.weights:
        layer = name.removesuffix(".weight")
        form = formats.get(layer)
        if name in done:
            continue
        blocks = blocks_of(source.weights, name)
        if form is None and layer not in merged:
            yield {name: blocks}
            continue
        weight = merged.added(layer, torch.cat(list(blocks)))
        if form is None:
            yield {name: iter([weight])}
            continue
        try:
            parts = parts_of(weight, form)
        except ValueError as error:
            raise CheckpointError(f"{name} in {source.path} holds {error}.") from None
        yield {f"{layer}.{part}": iter([tensor]) for part, tensor in parts.items()}
    for name in source.image_weights:
        if IMAGE_PREFIX + name not in done:
            yield {IMAGE_PREFIX + name: blocks_of(source.image_weights, name)}


def _write(file: BinaryIO, position: int, blocks: Iterator[Tensor], tell: Tell) -> None:
    file.seek(position)
    for block in blocks:
        tell()
        file.write(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)

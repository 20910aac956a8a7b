"""Codes of pictures, each encoded once and cached in a file by the picture's content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.checkpoint.tensors import open_safetensors
from ...mmp_core.checkpoint.tokens import token_identity
from ...mmp_core.errors import InputError
from ...mmp_core.files import accessing, replacing
from ...mmp_core.image.pictures import Size
from ...mmp_core.interruption import asking
from ...mmp_core.outside import check_bytes
from ...mmp_core.pipeline import encode_seen, grid_of
from .items import MOST_ITEMS, Picture

FORMAT = "mmada-parallel codes 1"

_PROBE = 8
"""Side, in codes, of the picture of noise by which image tokenizers are told apart."""


def codes_fingerprint(model: Model) -> str:
    """Differs where the same picture may get other codes: by variant, codebook, and the codes that
    the encoder gives to a picture of noise. The image tokenizer's weights must be loaded."""
    side, (low, high) = _PROBE * model.downsample, model.image_tokenizer.pixel_range
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    codes = model.image_tokenizer.encode((noise * (high - low) + low).to(model.device))
    identity = f"{model.variant} {token_identity(model)['codebook']} {codes.flatten().tolist()}"
    return hashlib.sha256(identity.encode()).hexdigest()


@dataclass
class CodeCache:
    """Codes of pictures by :func:`key_of`, in memory and, with ``path``, in a safetensors file.

    Codes of another image tokenizer are not read. ``note``: one sentence for the user on what
    became of the file. Raises ``InputError`` for a file that is something else.
    """

    path: Path | None
    fingerprint: str
    codes: dict[str, Tensor] = field(default_factory=dict)
    note: str = ""

    @accessing()
    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            check_bytes(self.path)
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            with open_safetensors(path, 2 * MOST_ITEMS) as file:
                metadata = file.metadata() or {}
                fits = metadata.get("fingerprint") == self.fingerprint
                if metadata.get("format") == FORMAT and fits:
                    self.codes = {key: _checked(file, key) for key in file.keys()}
        except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
            self._forget(str(error))
            return
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path} is not a cache of codes: give another file, or a new one.")
        if not fits:
            self.note = (
                f"{path.name} was made with another image tokenizer: all pictures are encoded "
                "again."
            )

    def _forget(self, why: str) -> None:
        assert self.path is not None
        self.note = f"{self.path.name} could not be read ({why}): all pictures are encoded again."
        self.codes = {}

    def check(self, model: Model, wanted: Mapping[str, tuple[Picture, Size]]) -> None:
        """Forget all codes where those of ``wanted``, {key: (picture, size)}, are of another size
        or codebook, since the file is damaged then."""
        for key in wanted.keys() & self.codes.keys() if self.path else ():
            codes = self.codes[key]
            if codes.shape[1:] != grid_of(model, wanted[key][1]):
                self._forget(f"{key} has shape {list(codes.shape)}")
                return
            if not 0 <= int(codes.min()) <= int(codes.max()) < model.layout.codebook_size:
                self._forget(f"{key} has codes that the image tokenizer does not have")
                return

    def write(self) -> None:
        """Write the file, whole or not at all; ``note`` says why, if that is not possible."""
        if self.path is None:
            return
        tensors = {key: codes.to(torch.int32) for key, codes in self.codes.items()}
        metadata = {"format": FORMAT, "fingerprint": self.fingerprint}
        try:
            with replacing(self.path) as temporary:
                save_file(tensors, temporary, metadata=metadata)
        except (OSError, SafetensorError) as error:
            self.note = f"{self.path.name} could not be written ({error})."


def _checked(file: Any, key: str) -> Tensor:
    """Codes (1, h, w) as they were written. Raises ``OSError`` for others: the file is damaged."""
    shape, kind = file.get_slice(key).get_shape(), file.get_slice(key).get_dtype()
    if len(shape) != 3 or shape[0] != 1 or not min(shape) or kind not in ("I32", "I64"):
        raise OSError(f"{key} has shape {shape} of {kind}")
    return file.get_tensor(key).long()


def key_of(picture: Picture, size: Size) -> str:
    """The key of the codes of ``picture`` at ``size``, wherever the picture is stored."""
    return f"{picture.digest} {size[0]}x{size[1]}"


def encode_pictures(
    model: Model,
    wanted: Mapping[str, tuple[Picture, Size]],
    cache: CodeCache,
    *,
    batch: int = 4,
    callback: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Fill ``cache`` with codes (1, h, w) of ``wanted``, {key: (picture, size)}.

    Pictures of one size are encoded ``batch`` at a time. ``callback(done, total)`` counts those
    that the cache lacks. An exception in between, an interruption too, keeps what was encoded.
    Returns {key: why} of pictures that could not be read.
    """
    cache.check(model, wanted)
    sizes = defaultdict(list)
    for key, (_, size) in wanted.items():
        if key not in cache.codes:
            sizes[size].append(key)
    total, done, failed = sum(map(len, sizes.values())), 0, {}
    try:
        for size, keys in sizes.items():
            for start in range(0, len(keys), batch):
                part = keys[start : start + batch]
                if callback:
                    callback(done, total)
                seen = {}
                with asking(partial(callback, done, total) if callback else None):
                    for key in part:
                        try:
                            seen[key] = model.variant.fit(wanted[key][0].read(), size)
                        except InputError as error:
                            failed[key] = str(error)
                _encode(model, seen, cache)
                done += len(part)
        if callback:
            callback(done, total)
    finally:
        if total:
            cache.write()
    return failed


def _encode(model: Model, seen: Mapping[str, Image.Image], cache: CodeCache) -> None:
    if seen:
        codes = encode_seen(model, list(seen.values())).cpu()
        cache.codes |= {key: codes[i : i + 1] for i, key in enumerate(seen)}

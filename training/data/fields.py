"""What items consist of, in whatever form they are stored."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from os.path import splitext
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ...mmp_core.errors import InputError, sentence
from ...mmp_core.image.files import load_image, load_mask
from .items import Item, Picture, wanted_text

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FIELDS = ("image", "instruction", "think", "target", "mask")
"""Keys of a manifest, columns of a Hugging Face dataset."""
PICTURE_FIELDS = ("image", "target", "mask")


def listed(folder: Path) -> list[Path]:
    """What is in ``folder`` and not hidden, by name. Raises ``InputError``."""
    return [folder / name for name in sorted(_names(folder))]


def endings_in(folder: Path) -> set[str]:
    """Of :func:`listed`, in lower case; quick where these are many. Raises ``InputError``."""
    return {splitext(name)[1].lower() for name in _names(folder)}


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror or error}).") from None


def read_field(source: Path | BinaryIO, name: str) -> Image.Image:
    """The upright RGB picture of a field: what is transparent is white, but of a mask, where it is
    not painted, black. Raises ``InputError``."""
    return load_mask(source).convert("RGB") if name == "mask" else load_image(source)


def item_of(name: str, fields: Mapping[str, Any], pictures: Mapping[str, Picture | None]) -> Item:
    return Item(
        name,
        wanted_text(fields.get("instruction"), sentence("it has no instruction.")),
        think=(fields.get("think") or "").strip() or None,
        image=pictures.get("image"),
        target=pictures.get("target"),
        mask=pictures.get("mask"),
    )


def any_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"

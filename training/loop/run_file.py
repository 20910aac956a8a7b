"""Run files: what a run was trained with, in TOML, by the names of the command's options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from ...mmp_core.errors import InputError
from ...mmp_core.files import replacing

NAME = "run.toml"
_HEAD = "# mmada-parallel train file FILE starts this run again; with --resume it goes on.\n"


def write_run_file(path: Path, method: str, values: Mapping[str, Any]) -> None:
    """``values``: by the names of the options of ``train METHOD``, with underscores; what is None
    or empty is left out. Raises ``InputError``."""
    given = {name: value for name, value in values.items() if value not in (None, [], "")}
    lines = [f"{name} = {_toml(value)}\n" for name, value in given.items()]
    try:
        with replacing(path) as temporary:
            text = "".join([_HEAD, f"method = {_toml(method)}\n", *lines])
            temporary.write_text(text, encoding="utf-8", newline="\n")
    except (OSError, UnicodeEncodeError) as error:
        raise InputError(f"{path} cannot be written ({error}).") from None


def lora_option(file: Path, strength: float) -> str:
    """``FILE:STRENGTH`` of an option, without an exponent, which it does not take."""
    return f"{file.absolute()}:{Decimal(repr(strength)):f}"


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")

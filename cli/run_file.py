"""Run files: the options of a training in TOML, written beside its run, which start it again."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..mmp_core.errors import InputError, shown
from ..mmp_core.outside import read_text

_BYTES, _LARGEST = 2**16, 2**64
"""Of a file, and a number in it."""
_QUOTED, _DOTS = re.compile(r"""\"(?:[^"\\\n]|\\.)*\"|'[^'\n]*'"""), 100
"""Texts, and how many dots a line may have beside them: for a key of many parts, the reader of
TOML takes the square of their number."""


def start(args: argparse.Namespace) -> None:
    """``train file``."""
    from .main import build_parser, run

    words = read_run_file(args.file, args.methods, args.more)
    run(build_parser().parse_args(["train", *words]))


def read_run_file(
    path: Path, methods: Mapping[str, argparse.ArgumentParser], more: list[str]
) -> list[str]:
    """The arguments of ``train`` that the file stands for, ``more`` after them.

    An option of ``more`` replaces that of the file. Raises ``InputError`` for a file that is
    missing or no TOML, and for what is not an option of its method.
    """
    values = _values(path)
    method = values.pop("method", None)
    if not isinstance(method, str) or method not in methods:
        raise InputError(f"{path} has the method {shown(method)}: expected {' or '.join(methods)}.")
    options = _options(methods[method])
    replaced = {word.partition("=")[0] for word in more}
    arguments = [method]
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if option not in options:
            raise InputError(f"{path} has {name}, which is not an option of train {method}.")
        if not replaced & options[option]:
            arguments += _arguments(path, name, options[option], value)
    return arguments + more


def _options(parser: argparse.ArgumentParser) -> dict[str, set[str]]:
    """Each option's forms, by each of them."""
    forms = [action.option_strings for action in parser._actions]
    return {form: set(group) for group in forms for form in group}


def _arguments(path: Path, name: str, forms: set[str], value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        off = [form for form in forms if form.startswith("--no-")]  # a plain switch has none
        return [option] if value else off
    if isinstance(value, list):
        return [word for each in value for word in _arguments(path, name, forms, each)]
    endless = isinstance(value, int) and abs(value) > _LARGEST
    if endless or not isinstance(value, str | int | float):
        raise InputError(
            f"{path}: {name} is {shown(value)}; expected text, a number, true or false."
        )
    return [f"{option}={value}"]


def _values(path: Path) -> dict[str, Any]:
    try:
        toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError:
        raise InputError(
            f'Run files need a reader of TOML: run "{sys.executable}" -m pip install tomli.'
        ) from None
    try:
        text = read_text(path, _BYTES, InputError)
        if any(line.count(".") > _DOTS for line in _QUOTED.sub("", text).splitlines()):
            raise ValueError("a key has more parts than an option")
        return toml.loads(text)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a run file ({error}).") from None

"""Options: default, range, choices and help of a setting, said once, on its dataclass field.

Node widgets, the command line and the tables of the help pages are made from them. Imports nothing
heavy, so that ``--help`` is instant.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from .errors import InputError, shown


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can be
        return False


@dataclass(frozen=True)
class Option:
    """What one field of a settings class may be.

    ``kind``: int, float, bool or str; None is a value, too, where it is the default. ``default``:
    ``MISSING`` for a required one. ``help``: a sentence or two, shown by node, command and help
    page. ``low``, ``high``: the range, both allowed; ``above``: a bound that is not. ``step``: by
    how much a node's widget moves. ``advanced``: shown by the node only when asked.
    """

    kind: type
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False
    name: str = ""

    def check(self, value: Any) -> None:
        """Raises ``InputError`` where ``value`` is of another kind, out of range or no choice."""
        if not (value is None and self.default is None) and not self.fits(value):
            raise InputError(f"{self.name} is {shown(value)}; expected {self.expected}.")

    def fits(self, value: Any) -> bool:
        """Whether ``value`` is of this kind and in its range."""
        if self.choices:
            return isinstance(value, self.kind) and value in self.choices
        if self.kind in (bool, str):
            return isinstance(value, self.kind)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.kind is int and not isinstance(value, int):
            return False
        return (
            (self.kind is int or _is_finite(value))
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
        )

    @property
    def expected(self) -> str:
        """What may be given, to end a sentence with: "a whole number from 1 to 4096"."""
        if self.choices:
            return " or ".join(map(repr, self.choices))
        if self.kind in (bool, str):
            return "True or False" if self.kind is bool else "text"
        words = ["a whole number" if self.kind is int else "a number"]
        if self.above is not None:
            words.append(f"above {plain(self.above)}")
        if self.low is not None:
            words.append(f"from {plain(self.low)}")
        if self.high is not None:
            words.append(f"to {plain(self.high)}")
        elif self.low is not None:
            words.append("up")
        return " ".join(words)


def plain(number: float) -> str:
    """``number`` without exponent or trailing zeros."""
    return str(number) if isinstance(number, int) else f"{number:.10f}".rstrip("0").rstrip(".")


def option(
    default: Any,
    help: str,
    *,
    kind: type | None = None,
    choices: Collection[str] = (),
    **limits: Any,
) -> Any:
    """A dataclass field with its :class:`Option`. ``kind``: by default the default's."""
    declared = Option(kind or type(default), default, help, choices=tuple(choices), **limits)
    return field(default=default, metadata={Option: declared})


def options_of(settings: Any) -> dict[str, Option]:
    """The options of a settings class by the name of their field; of a value of such a class, with
    what it holds as their defaults."""
    options = {}
    for entry in fields(settings):
        if declared := entry.metadata.get(Option):
            default = declared.default
            if not isinstance(settings, type):
                default = getattr(settings, entry.name)
            options[entry.name] = replace(declared, name=entry.name, default=default)
    return options


def check(settings: Any) -> None:
    """Raises ``InputError`` with one sentence about the first field that is not as declared.
    Numbers of NumPy become Python's, so that files can hold them."""
    for name, declared in options_of(type(settings)).items():
        value = python_number(getattr(settings, name))
        declared.check(value)
        object.__setattr__(settings, name, value)


def python_number(value: Any) -> Any:
    """A number of another kind, such as NumPy's, as Python's own; anything else as it is."""
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:  # a fraction beyond all floats
        return value

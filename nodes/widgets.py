"""Node widgets made from options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.v0_0_2 import io

from ..mmp_core.options import Option

MOST_SEED = 2**64 - 1


def between(
    low: float, high: float, *, default: float, step: float | None = None
) -> dict[str, Any]:
    """The range of a number on a node, for its input."""
    return {"default": default, "min": low, "max": high, "step": step}


def widget(
    declared: Option,
    *,
    display_name: str | None = None,
    control: Any = None,
    optional: bool = False,
    **changes: Any,
) -> Any:
    """The input of a node that shows an option.

    ``control``: ComfyUI's ``control_after_generate``, of a seed. ``optional``: may be missing from
    a queued workflow, as from those that were saved before there was such a widget. ``changes``:
    fields of the option that are another on this node.
    """
    option = replace(declared, **changes)
    shown: dict[str, Any] = {
        "default": option.default,
        "display_name": display_name,
        "tooltip": option.help,
        "advanced": option.advanced or None,
        "optional": optional,
    }
    if option.choices:
        return io.Combo.Input(option.name, options=list(option.choices), **shown)
    if option.kind is bool:
        return io.Boolean.Input(option.name, **shown)
    if option.kind is str:
        return io.String.Input(option.name, **shown)
    shown |= {"max": option.high, "step": option.step}
    low = option.low if option.above is None else option.step
    if option.kind is float:
        return io.Float.Input(option.name, min=low, **shown)
    return io.Int.Input(option.name, min=low, control_after_generate=control, **shown)

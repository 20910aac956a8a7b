"""The gate of the graph: what a node is given is checked by its own schema before it runs.

ComfyUI checks widgets when a workflow is queued; what comes over a link, from another pack or
through the API is any object, and its range is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from numbers import Integral
from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ..mmp_core import MASKED, InputError, Prompt, TokenState, Trajectory
from ..mmp_core.checkpoint.tensors import holds_values
from ..mmp_core.checkpoint.tokens import check_known, check_placed
from ..mmp_core.errors import shown
from ..mmp_core.files import accessing
from ..mmp_core.image.placement import Placement
from ..mmp_core.memory import OutOfMemory, is_out_of_memory
from ..mmp_core.options import Option, python_number
from ..mmp_core.outside import MOST_SIDE, MOST_TEXT, checked_text, plain_tensor
from ..training.data.dataset import EditDataset
from .host import HostedModel, interruptible
from .pictures import strips
from .types import Dataset, LoraModel, Model, Tokens
from .types import Prompt as PromptType
from .types import Trajectory as TrajectoryType

LARGEST_SIDE = 16_384
_KINDS: Mapping[str, tuple[type, str]] = {
    Model.io_type: (HostedModel, "a model from Load MMaDA-Parallel"),
    PromptType.io_type: (Prompt, "a prompt from Encode Instruction"),
    Tokens.io_type: (TokenState, "tokens from Parallel Denoise"),
    TrajectoryType.io_type: (Trajectory, "a trajectory from Parallel Denoise"),
    Dataset.io_type: (EditDataset, "a dataset from Load Edit Dataset"),
    LoraModel.io_type: (dict, "an adapter from a training node"),
}
"""What our own types are made of, and how a message calls them."""


def guarded(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """``node``, whose ``execute`` checks its inputs first, once however often this is called."""
    run = node.__dict__["execute"].__func__
    if hasattr(run, "__wrapped__"):
        return node

    @wraps(run)
    def execute(cls: type[io.ComfyNode], *args: Any, **given: Any) -> Any:
        try:
            values = checked(node, given)
            with accessing():
                return run(cls, *args, **values)
        except InputError as error:
            text = shown_names(node, str(error))
            raise error if text == str(error) else type(error)(text) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise OutOfMemory(
            f"{node.define_schema().display_name} ran out of memory. Use a smaller picture or a "
            "smaller batch, close other programs that use the GPU, or convert the checkpoint to "
            "fewer bits (Convert Checkpoint)."
        )

    setattr(node, "execute", classmethod(execute))  # noqa: B010 - a type checker sees no override
    return node


def shown_names(node: type[io.ComfyNode], text: str) -> str:
    """``text`` with the inputs of ``node`` called as the node shows them."""
    for each in node.define_schema().inputs:
        if each.display_name:
            text = re.sub(rf"\b{each.id}\b", each.display_name, text)
    return text


def checked(node: type[io.ComfyNode], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` as ``node`` may use it. Raises ``InputError`` for the first that is not as its
    input says."""
    values = dict(given)
    for each in node.define_schema().inputs:
        value = values.get(each.id)
        if value is None and (each.optional or each.id not in values):
            continue
        if check := _CHECKS.get(each.get_io_type()):
            values[each.id] = check(each, value)
        elif known := _KINDS.get(each.get_io_type()):
            values[each.id] = _of_kind(each.id, value, *known)
    _check_belonging(values)
    return values


def _check_belonging(values: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for a prompt, tokens or a trajectory that the model beside them cannot
    read."""
    model = values.get("model")
    if model is None:
        return
    for name, value in values.items():
        for state in _states(value):
            _check_sides(name, state, model.model.downsample)
        try:
            if isinstance(value, Prompt):
                model.model.variant.check_prompt(value.task)
                check_known(model.model, value.instruction, value.image)
                check_known(model.model, value.without_text, value.reference)
            for state in _states(value):
                check_known(model.model, state.text, state.image, low=MASKED)
                check_placed(state, model.model)
        except ValueError as error:
            raise InputError(f"{name} is of another checkpoint: {error}") from None


def _check_sides(name: str, state: TokenState, unit: int) -> None:
    height, width = (tokens * unit for tokens in state.grid)
    text = state.text.shape[1]
    if text > MOST_TEXT or max(height, width) > MOST_SIDE:
        raise InputError(
            f"{name} has {text} text tokens and a picture of {width}x{height} pixels; expected at "
            f"most {MOST_TEXT} text tokens and sides of {MOST_SIDE} pixels."
        )


def _of_kind(name: str, value: Any, kind: type, said: str) -> Any:
    """``value``, whose tokens another pack may have moved from the CPU or spoilt."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is of type {type(value).__name__}; expected {said}.")
    if not isinstance(value, TokenState | Prompt | Trajectory):
        return value
    try:
        whole = all(map(holds_values, _tensors(value))) and _alike(value)
    except (ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{name} is damaged; expected {said}.")
    if not all(state.batch for state in _states(value)):
        raise InputError(f"{name} is a batch of 0; expected {said}.")
    return value if all(tensor.is_cpu for tensor in _tensors(value)) else value.to("cpu")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those that a value of our own types holds, made again so that it checks what it is given."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value) and not isinstance(value, type):
        made = replace(value)
        for field in fields(made):
            yield from _tensors(getattr(made, field.name))


def _alike(value: TokenState | Prompt | Trajectory) -> bool:
    """Whether what ``value`` consists of fits together."""
    steps = value.steps if isinstance(value, Trajectory) else ()
    states = [*_states(value), *(one for s in steps for one in (s.state, s.after, s.guess))]
    placed = [one for state in states for one in state.placement or ()]
    if not all(isinstance(one, Placement) for one in placed):
        return False
    if isinstance(value, Prompt):
        texts = value.instruction, value.unconditional, value.negative
        codes = value.image, value.reference
        return all(
            tokens is None or (tokens.ndim, tokens.dtype) == (dimensions, torch.int64)
            for dimensions, several in ((2, texts), (3, codes))
            for tokens in several
        )
    texts = [state.text for state in states]
    texts += [one for step in steps for one in (step.text_revealed, step.text_confidence)]
    images = [state.image for state in states]
    images += [one for step in steps for one in (step.image_revealed, step.image_confidence)]
    return all(len({one.shape for one in several}) == 1 for several in (texts, images))


def _states(value: Any) -> tuple[TokenState, ...]:
    """The tokens of ``value`` that decide whether a checkpoint knows it."""
    if isinstance(value, Trajectory):
        return value.initial, value.final
    if isinstance(value, Prompt):
        return (value.initial,)
    return (value,) if isinstance(value, TokenState) else ()


def _number(each: Any, value: Any) -> int | float:
    whole = each.get_io_type() == "INT"
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)
    else:
        value = python_number(value)
        if whole and isinstance(value, float) and value.is_integer():
            value = int(value)
    kind = int if whole else float
    Option(kind, 0, "", low=each.min, high=each.max, name=each.id).check(value)
    return value


def _text(each: Any, value: Any) -> str:
    return checked_text(value, each.id)


def _switch(each: Any, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{each.id} is {shown(value)}; expected true or false.")
    return value


def _choice(each: Any, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{each.id} is {shown(value)}; expected the name of a choice.")
    checked_text(value, each.id)
    if value not in each.options and each.id not in _NAMES_OF_FILES:
        choices = ", ".join(map(str, each.options))
        raise InputError(f"{each.id} is {shown(value)}; expected one of {choices}.")
    return value


_NAMES_OF_FILES = (
    "checkpoint",
    "image_tokenizer",
    "lora",
    "existing_lora",
    "file",
    "dataset",
    "clip",
)
"""Choices that the nodes look up themselves, and name the folder where they are missing."""


def _picture(each: Any, value: Any) -> torch.Tensor:
    value = _computable(_plain(each.id, value, "a batch of pictures"))
    _check_tensor(each.id, value, (4,), "a batch of pictures")
    if value.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"{each.id} has {value.shape[-1]} channels; expected 1, 3 or 4: grey, RGB or RGBA."
        )
    return value


def _plain(name: str, value: Any, said: str) -> torch.Tensor:
    """``value`` as NumPy could take it. Raises ``InputError`` where it is no ordinary tensor."""
    plain = plain_tensor(value)
    if plain is None:
        raise _no_floats(name, value, said)
    return plain


def _no_floats(name: str, value: Any, said: str) -> InputError:
    return InputError(f"{name} is {_named(value)}; expected {said}, floats in 0 … 1.")


def _computable(value: torch.Tensor) -> torch.Tensor:
    """Floats of a dtype that NumPy lacks and PyTorch hardly computes in, such as bf16, in float32;
    anything else as it is."""
    if value.is_floating_point():
        return value if value.dtype in _COMPUTABLE else value.float()
    return value


_COMPUTABLE = (torch.float16, torch.float32, torch.float64)


def _mask(each: Any, value: Any) -> torch.Tensor:
    value = _plain(each.id, value, "masks")
    value = value if value.is_complex() else value.float()
    _check_tensor(each.id, value, (2, 3), "masks")
    return value


def _check_tensor(name: str, value: torch.Tensor, dimensions: tuple[int, ...], said: str) -> None:
    if not value.is_floating_point():
        raise _no_floats(name, value, said)
    if value.ndim not in dimensions:
        raise InputError(f"{name} has shape {tuple(value.shape)}; expected {said}.")
    sides = value.shape[-2:] if len(dimensions) == 2 else value.shape[1:3]
    if not value.numel() or max(sides) > LARGEST_SIDE:
        raise InputError(
            f"{name} has shape {tuple(value.shape)}; expected {said} with sides of 1 to "
            f"{LARGEST_SIDE} pixels."
        )
    parts = interruptible(strips(value.flatten(0, 1)))
    if not all(bool((255 * part.float()).isfinite().all()) for part in parts):  # as 8-bit levels
        raise InputError(
            f"{name} has values that are not finite numbers: look at the node that it comes from."
        )


def _named(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.is_meta:
        return "a tensor without values"
    if isinstance(value, torch.Tensor) and value.layout != torch.strided:
        return "a sparse tensor"
    if isinstance(value, torch.Tensor) and plain_tensor(value) is None:
        return "a tensor of a special kind"
    if isinstance(value, torch.Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    return f"of type {type(value).__name__}"


_CHECKS: Mapping[str, Callable[[Any, Any], Any]] = {
    "INT": _number,
    "FLOAT": _number,
    "STRING": _text,
    "BOOLEAN": _switch,
    "COMBO": _choice,
    "IMAGE": _picture,
    "MASK": _mask,
}

"""What the pack needs of ComfyUI's inside, each with a plain way where a version lacks it.

ComfyUI promises none of these names: they have moved, and their arguments have changed. Where one
is missing or cannot be called as here, the pack does without: slower or less exact about memory,
but with the same tokens.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import comfy.cli_args
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor, nn

from ...mmp_core.errors import InputError
from ...mmp_core.memory import is_out_of_memory

_log = logging.getLogger(__name__)
_FAILED: set[str] = set()
"""Kernels whose failure was said."""

try:
    from comfy.ldm.modules import attention
except ImportError:
    attention = None

try:
    from comfy.patcher_extension import PatcherInjection
except ImportError:

    class PatcherInjection:
        def __init__(self, inject: Callable[[Any], None], eject: Callable[[Any], None]):
            self.inject, self.eject = inject, eject


class _Marked:
    """What ComfyUI's patchers look for in a layer whose weight they may leave on the CPU."""

    comfy_cast_weights = False
    weight_function = bias_function = ()


Streamed: Any = getattr(comfy.ops, "CastWeightBiasOp", _Marked)
"""Base class of a layer whose weight may lie elsewhere than its input: it asks :func:`brought`."""


@lru_cache(maxsize=64)
def _takes(function: Callable[..., Any], positional: int, names: tuple[str, ...]) -> bool:
    try:
        fit = inspect.signature(function).bind
        fit(*[None] * positional, **dict.fromkeys(names))
    except TypeError:
        return False
    except ValueError:  # not to be found out
        return True
    return True


def usable(place: Any, name: str, positional: int, *names: str) -> Callable[..., Any] | None:
    """``place.name`` if it is there and takes so many arguments and those called ``names``."""
    function = getattr(place, name, None)
    return function if callable(function) and _takes(function, positional, names) else None


@contextmanager
def brought(layer: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """``layer.weight`` in ``dtype`` on ``device``, streamed by ComfyUI or copied."""
    cast = usable(comfy.ops, "cast_bias_weight", 1, "dtype", "device", "bias_dtype", "offloadable")
    uncast = usable(comfy.ops, "uncast_bias_weight", 4)
    if cast is None or uncast is None:
        weight: Any = layer.weight
        yield weight.to(device=device, dtype=dtype)
        return
    weight, bias, stream = cast(
        layer, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
    )
    try:
        yield weight
    finally:
        uncast(layer, weight, bias, stream)


def layers(dtype: torch.dtype, device: torch.device) -> Any:
    """ComfyUI's layers for weights and computations in ``dtype``."""
    pick = usable(comfy.ops, "pick_operations", 2, "load_device")
    return pick(dtype, dtype, load_device=device) if pick else comfy.ops.disable_weight_init


def fused_attention() -> Callable[..., Tensor] | None:
    """The attention that ComfyUI was started with, for heads that are split already."""
    return usable(attention, "optimized_attention", 4, "skip_reshape", "low_precision_attention")


def patcher(module: nn.Module, **devices: torch.device) -> Any:
    """ComfyUI's manager of a module's memory: DynamicVRAM or the classic way, as it was started.
    ``devices``: load_device and offload_device."""
    plain = comfy.model_patcher.ModelPatcher
    return getattr(comfy.model_patcher, "CoreModelPatcher", plain)(module, **devices)


def dequantised_fp8(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor | None:
    """``weight`` times ``scale`` by a kernel of comfy_kitchen, or ``None`` where it has none."""
    return _by_kernel("dequantize_per_tensor_fp8", weight, scale, dtype)


def int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor | None:
    """``x`` times int8 ``weight`` by a kernel of comfy_kitchen, which rounds each row of ``x`` to
    int8, or ``None`` where it has none."""
    return _by_kernel("int8_linear", x, weight, scale, out_dtype=x.dtype)


def _by_kernel(name: str, *args: Any, **settings: Any) -> Tensor | None:
    try:
        import comfy_kitchen

        kernel = getattr(comfy_kitchen, name)
    except (ImportError, AttributeError, ValueError):
        return None  # ValueError: newer kernels cannot be declared to PyTorch 2.5
    try:
        return kernel(*args, **settings)
    except (KeyError, TypeError, ValueError, RuntimeError) as problem:
        if is_out_of_memory(problem):
            raise
        if name not in _FAILED:
            _FAILED.add(name)
            _log.warning("MMaDA-Parallel: %s of comfy_kitchen failed: %r", name, problem)
        return None


def loaded_bytes(device: torch.device) -> int:
    """Bytes on ``device`` of all models that ComfyUI can unload; 0 where it does not say."""
    total = 0
    for entry in getattr(comfy.model_management, "current_loaded_models", []):
        # a model that another pack has leaked has no patcher any more, and cannot be unloaded
        loaded = usable(entry, "model_loaded_memory", 0)
        if loaded and getattr(entry, "model", None) is not None and entry.device == device:
            total += loaded()
    return total


def loaded_size(patcher: Any) -> int:
    """Bytes of all weights of a patcher once they are on its device. DynamicVRAM leaves those of a
    file in another dtype as they are, and casts what it loads."""
    sizes = {}
    for module in patcher.model.modules():
        parameters = module.named_parameters(recurse=False)
        for name, weight in (*parameters, *module.named_buffers(recurse=False)):
            dtype = getattr(module, f"{name}_comfy_model_dtype", None) or weight.dtype
            sizes[id(weight)] = weight.numel() * dtype.itemsize
    return sum(sizes.values())


def leave_if_interrupted(*_: object) -> None:
    """For fingerprints, in which ComfyUI expects no interruption: raise ``InputError`` where there
    is one, which the next check, in a node that runs, still finds."""
    if comfy.model_management.processing_interrupted():
        raise InputError("The run was interrupted.")


def memory_of(device: torch.device) -> tuple[float, float]:
    """Bytes of ``device`` that are free, and in all; 0 where ComfyUI does not say."""
    management, sizes = comfy.model_management, []
    for name in ("get_free_memory", "get_total_memory"):
        ask = usable(management, name, 1)
        try:
            sizes.append(float(ask(device)) if ask else 0.0)
        except (KeyError, AttributeError, RuntimeError, TypeError):
            sizes.append(0.0)
    return sizes[0], sizes[1]


def shown_id(node_id: str) -> str:
    """The node of the page that stands for ``node_id``, which a loop may have made."""
    try:
        from comfy_execution.progress import get_progress_state

        return get_progress_state().dynprompt.get_display_node_id(node_id)
    except (ImportError, AttributeError, KeyError, TypeError):
        return node_id


def reserved_bytes() -> int:
    """Bytes of a device that ComfyUI leaves to other programs."""
    reserved = usable(comfy.model_management, "extra_reserved_memory", 0)
    return reserved() if reserved else 0


_HALF = (torch.bfloat16, torch.float16)
_ASKED = {
    "fp64_unet": torch.float32,
    "fp32_unet": torch.float32,
    "force_fp32": torch.float32,
    "bf16_unet": torch.bfloat16,
    "fp16_unet": torch.float16,
    "force_fp16": torch.float16,
}
"""What ComfyUI's start options ask for. There is no float64 here, and weights are in 8 bits where
the file has them so: its options for those change nothing."""


def asked_dtype() -> torch.dtype | None:
    """The dtype that ComfyUI was started with, if any."""
    args = comfy.cli_args.args
    return next((dtype for name, dtype in _ASKED.items() if getattr(args, name, False)), None)


def fast_dtype(device: torch.device, parameters: int, stored: torch.dtype) -> torch.dtype:
    """The dtype for a transformer on a GPU: what ComfyUI was started with, else half precision, but
    float32 where the GPU does not compute in that."""
    dtypes = [*_HALF, torch.float32]
    dtype = asked_dtype()
    choose = usable(
        comfy.model_management,
        "unet_dtype",
        *(0, "device", "model_params", "supported_dtypes", "weight_dtype"),
    )
    if dtype is None and choose is not None:
        dtype = choose(
            device=device, model_params=parameters, supported_dtypes=dtypes, weight_dtype=stored
        )
    if dtype not in dtypes:
        dtype = stored if stored in dtypes else torch.bfloat16
    # unet_dtype also gives a dtype to store weights in and to compute in another, emulated here
    cast = usable(comfy.model_management, "unet_manual_cast", 3)
    return (cast and cast(dtype, device, dtypes)) or dtype

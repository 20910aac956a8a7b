"""Adapters on a hosted model, put on by ComfyUI while the model that has them is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import comfy.model_patcher
import comfy.ops
import torch
from comfy.patcher_extension import PatcherInjection

from ...mmp_core.checkpoint.adapters import build_adapter
from ...mmp_core.model.lora import Adapter, AttachedAdapter
from .models import HostedAdapter, HostedModel

_INJECTIONS = "mmada_parallel.adapters"


def with_adapter(
    model: HostedModel,
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    name: str,
    strength: float,
) -> HostedModel:
    """``model`` with one adapter more, as ``checkpoint.adapters.read_adapter`` gave it.

    The weights are shared with ``model``, which stays as it is: the two take turns in being
    loaded. Raises ``InputError`` where the adapter does not fit.
    """
    devices = {
        "load_device": model.patcher.load_device,
        "offload_device": model.patcher.offload_device,
    }
    with torch.inference_mode(False):  # in which nodes run; see host.load
        adapter = build_adapter(
            model.model,
            {key: t.clone() if t.is_inference() else t for key, t in state.items()},
            metadata,
            name,
            operations=comfy.ops.manual_cast,
            device=model.patcher.offload_device,
        )
    hosted = HostedAdapter(comfy.model_patcher.CoreModelPatcher(adapter, **devices), strength)
    adapters = (*model.adapters, hosted)
    patcher = model.patcher.clone()
    patcher.set_injections(
        _INJECTIONS, [_injection(added.patcher.model, added.strength) for added in adapters]
    )
    return replace(model, patcher=patcher, adapters=adapters)


def _injection(adapter: Adapter, strength: float) -> PatcherInjection:
    """Not ComfyUI 0.33.0's bypass: where two share a layer it does not come off, and it does not
    count the memory of its adapters."""
    at_work: list[AttachedAdapter] = []

    def inject(patcher: comfy.model_patcher.ModelPatcher) -> None:
        at_work.append(adapter.attach(patcher.model, strength))

    def eject(patcher: comfy.model_patcher.ModelPatcher) -> None:
        while at_work:
            at_work.pop().remove()

    return PatcherInjection(inject=inject, eject=eject)

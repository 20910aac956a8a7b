"""Quantised models, and adapters as after some training."""

import json
from typing import Any

import torch
from mmada_parallel.mmp_core.checkpoint.adapters import PEFT_CONFIG, PEFT_WEIGHTS
from mmada_parallel.mmp_core.model.config import LAYER_SETS
from mmada_parallel.mmp_core.model.formats import FORMATS
from mmada_parallel.mmp_core.model.lora import adaptable_layers
from mmada_parallel.mmp_core.model.quantised import WeightOnlyLinear
from mmada_parallel.training.weights.adapter_files import save_adapter
from mmada_parallel.training.weights.settings import AdapterSettings


def quantised(model, kind):
    """``model`` with the linear layers of its blocks stored as our converter stores them."""
    for name, old in adaptable_layers(model).items():
        if FORMATS[kind].fits(old.in_features, old.out_features):
            parent, _, own = name.rpartition(".")
            layer = WeightOnlyLinear.of(old.weight.detach(), FORMATS[kind])
            model.get_submodule(parent)._modules[own] = layer
    return model


def stirred(lora, seed=1):
    """``lora`` with values in B, too, as after some training."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.2, generator=rng)
            elif "magnitude" in name:
                weight.mul_(1 + 0.3 * torch.rand(weight.shape, generator=rng))
    return lora


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"alpha": 6},
    "rsLoRA": {"alpha": AdapterSettings(rank=4, rslora=True).alpha},
    "DoRA": {"alpha": 6, "dora": True},
    "DoRA and rsLoRA": {"alpha": AdapterSettings(rank=4, rslora=True).alpha, "dora": True},
    "attention": {"layers": LAYER_SETS["attention"]},
    "mlp": {"layers": LAYER_SETS["mlp"], "dora": True},
}
"""Every kind of adapter that training writes: arguments of ``LoRA``."""


def write_peft_folder(folder, lora, metadata=None):
    """``lora`` as our file, with the configuration that PEFT wants beside it."""
    config = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.rank,  # what it is scaled by is within our file
        "use_dora": lora.dora,
        "target_modules": sorted(lora.shapes),  # the last component alone would name the head, too
        "inference_mode": True,
    }
    save_adapter(folder / PEFT_WEIGHTS, lora, metadata)
    (folder / PEFT_CONFIG).write_text(json.dumps(config))

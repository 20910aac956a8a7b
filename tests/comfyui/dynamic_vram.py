"""Run as ``python -m mmada_parallel.tests.comfyui.dynamic_vram COMFYUI FOLDER NAME,… RESIDENCY,…``.

Edits, adapts and trains checkpoints under ComfyUI's DynamicVRAM on a card in Python (card.py,
fake_aimdo.py) which has room for the weights that RESIDENCY says; prints JSON.
"""

import gc
import json
import sys

import torch
from PIL import Image

from ...mmp_core import SamplerSettings, denoise, encode_instruction
from ...mmp_core.checkpoint.convert import convert
from ...mmp_core.model.quantised import WeightOnlyLinear
from ..nodes import untrained
from . import fake_aimdo
from .card import CARD, Card
from .streamed_training import gradients
from .streaming import FOLDER, GREEDY, Situation, folder_paths, management, tie, write_checkpoints

RESIDENCIES = {
    "classic": None,  # without DynamicVRAM
    "all": lambda number, layer: True,
    "none": lambda number, layer: False,
    "alternate": lambda number, layer: layer % 2 == 0,
    "flapping": lambda number, layer: number % 3 != 0,
}


def choose_path(dynamic):
    import comfy.memory_management
    import comfy.model_patcher

    patcher = comfy.model_patcher
    comfy.memory_management.aimdo_enabled = dynamic
    patcher.CoreModelPatcher = patcher.ModelPatcherDynamic if dynamic else patcher.ModelPatcher


def edited(hosted):
    management.load_models_gpu(hosted.get_models(), memory_required=1000)
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    prompt = encode_instruction(hosted.model, "add a red star", picture)
    final = denoise(hosted.model, prompt, SamplerSettings(**GREEDY)).final.to("cpu")
    pixels = hosted.model.image_tokenizer.decode(final.image.to(CARD)).to("cpu")
    total = round(float(pixels.double().sum()), 3)
    return [prompt.image.tolist(), final.text.tolist(), final.image.tolist(), total]


def adapted(nodes, hosted):
    rng, state = torch.Generator().manual_seed(5), {}
    for name, layer in hosted.model.transformer.named_modules():
        if ".blocks." in name and hasattr(layer, "in_features"):
            a, b = (8, layer.in_features), (layer.out_features, 8)
            state[f"{name}.lora_A.weight"] = torch.randn(a, generator=rng) / 10
            state[f"{name}.lora_B.weight"] = torch.randn(b, generator=rng) / 10
    return nodes.host.with_adapter(hosted, state, {}, "an adapter", 1.0)


def observe(nodes, name, residency):
    fake_aimdo.Residency.start(RESIDENCIES[residency])
    choose_path(residency != "classic")
    hosted = nodes.host.load(name, "fp32", "auto")
    layers = list(hosted.model.transformer.modules())
    before = edited(hosted)
    nodes.host.TrainingMemory(hosted).prepare(1000)
    loss, grads = gradients(nodes, hosted)
    changed = adapted(nodes, hosted)
    found = {
        "dynamic": hosted.is_dynamic(),
        "quantised": sum(isinstance(layer, WeightOnlyLinear) for layer in layers),
        "managed": sum(hasattr(layer, "_v") for layer in layers),
        "edits": [before, edited(hosted)],
        "adapted": [edited(changed)],
        "training": [loss, *grads],
    }
    found["edits"].append(edited(hosted))
    found["adapted"].append(edited(changed))
    residence = fake_aimdo.Residency
    found |= {"asked": residence.asked, "refused": residence.refused, "pinned": residence.pinned()}
    management.unload_all_models()
    return found


def prepared():
    """Our nodes, with all checkpoints written, under DynamicVRAM on the card."""
    # wide enough for weights above the 16 KB below which ComfyUI loads them at once
    untrained.SIZES.update(d_model=256, n_heads=4, mlp_hidden_size=512)
    folder_paths.add_model_folder_path("mmada_parallel", str(FOLDER))
    from ... import nodes

    write_checkpoints()
    tie(untrained.write_untrained(FOLDER / "tied-wide"))
    for kind in ("fp8", "int8"):
        convert(FOLDER / "variant-M", FOLDER / f"small-{kind}.safetensors", quantize=kind)
    Situation().pretend()
    fake_aimdo.install()
    management.args.disable_pinned_memory = True
    return nodes


def main(names, residencies):
    nodes, found = prepared(), {}
    with torch.inference_mode(), Card():  # as ComfyUI runs nodes
        for name in names:
            found[name] = {}
            for residency in residencies:
                found[name][residency] = observe(nodes, name, residency)
                gc.collect()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*(argument.split(",") for argument in sys.argv[3:5]))

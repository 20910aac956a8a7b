"""Run as ``python -m mmada_parallel.tests.comfyui.streaming COMFYUI FOLDER``, a process of its own.

Loads checkpoints with ComfyUI's classic path (no DynamicVRAM) onto a card that holds all of the
weights, some, or none of them, and denoises a batch with less memory than it needs at once; prints
what happened as JSON.
"""

import gc
import json
import sys
from pathlib import Path

COMFYUI, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(COMFYUI))
import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True
import comfy.model_management as management  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401  # as main.py: later another `utils` would be found
from PIL import Image  # noqa: E402

from ...mmp_core import SamplerSettings, denoise, encode_instruction  # noqa: E402
from ...mmp_core.batching import denoise_in_batches  # noqa: E402
from ...mmp_core.checkpoint.convert import convert  # noqa: E402
from ...mmp_core.memory import OutOfMemory, denoising_estimate  # noqa: E402
from ...mmp_core.model.formats import FORMATS  # noqa: E402
from ...mmp_core.sampler import policies  # noqa: E402
from ..mmp_core import tiny  # noqa: E402
from ..nodes.untrained import write_untrained  # noqa: E402
from .card import CARD, LIVE, Card  # noqa: E402

ROOM = 10**9
"""Bytes of a card on which everything fits."""
GREEDY = {"image_temperature": 0.0, "text_steps": 4, "image_steps": 4}


class Situation:
    """How much of the card ComfyUI believes to be free."""

    def __init__(self):
        self.capacity = ROOM

    def pretend(self):
        management.get_torch_device = lambda: CARD
        management.get_all_torch_devices = lambda *_, **__: [CARD]
        management.unet_offload_device = lambda: torch.device("cpu")
        management.get_free_memory = self.free
        management.get_total_memory = lambda device: ROOM
        management.minimum_inference_memory = lambda: 0
        management.extra_reserved_memory = lambda: 0
        management.lowvram_available = True
        management.vram_state = management.VRAMState.NORMAL_VRAM
        policies.seeded_generators = lambda seeds, device: [torch.Generator() for _ in seeds]

    def free(self, device=None, torch_free_too=False):
        free = max(0, self.capacity - LIVE.now)
        return (free, free) if torch_free_too else free


def observe(host, situation, name, wanted):
    """Load ``name`` where ``wanted`` ("all", "some" or "none") of its weights fit, and edit."""
    situation.capacity = ROOM
    loaded = host.load(name, "fp32", "auto")
    model, patchers = loaded.model, loaded.get_models()
    weights = sum(patcher.model_size() for patcher in patchers)
    assert LIVE.now == 0, "weights lie on the card before they are asked for"
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    if wanted == "some":
        situation.capacity = weights
    if wanted == "none":
        management.vram_state = management.VRAMState.NO_VRAM
    management.load_models_gpu(patchers, memory_required=weights // 2)
    management.vram_state = management.VRAMState.NORMAL_VRAM
    resident = LIVE.now
    prompt = encode_instruction(model, "add a red star", picture)
    final = denoise(model, prompt, SamplerSettings(**GREEDY)).final.to("cpu")
    pixels = model.image_tokenizer.decode(final.image.to(CARD)).to("cpu")
    found = {
        "size": weights,
        "claimed": sum(patcher.loaded_size() for patcher in patchers),
        "resident": resident,
        "streamed": sorted(streamed_kinds(loaded)),
        "tokens": [prompt.image.tolist(), final.text.tolist(), final.image.tolist()],
        "pixels": round(float(pixels.double().sum()), 3),
    }
    del prompt, final, pixels
    gc.collect()
    found["after"] = LIVE.now - resident
    management.unload_all_models()
    found["unloaded"] = LIVE.now
    return found


BATCH = 5


class Cramped:
    """A batch on a card that has room for ``samples`` of it and ``weights`` (a share of them)."""

    def __init__(self, host, situation, samples, weights=1.0):
        situation.capacity, LIVE.capacity = ROOM, ROOM
        self.loaded = host.load("plain", "fp32", "auto")
        self.model = self.loaded.model
        self.prompt = encode_instruction(self.model, "add a red star", batch=BATCH)
        self.settings = SamplerSettings(**GREEDY, seed=3)
        size = int(weights * self.loaded.patcher.model_size())
        estimate = denoising_estimate(self.model, self.prompt, self.settings)
        situation.capacity = LIVE.capacity = size + int(estimate.total(samples)) + 1

    def run(self, at_once=None):
        """``at_once``: claim that so many fit."""
        budget, parts = self.loaded.memory_budget(self.prompt, previews=False), []
        if at_once:
            object.__setattr__(budget, "samples", lambda estimate, batch: at_once)
        LIVE.most = 0
        found = {"parts": parts}
        try:
            final = denoise_in_batches(
                self.model,
                self.prompt,
                self.settings,
                budget=budget,
                on_batch=lambda samples: parts.append([samples.start, samples.stop]),
            ).final
            found["tokens"] = [final.text.tolist(), final.image.tolist()]
        except OutOfMemory as error:
            found |= {"error": str(error), "is_oom": isinstance(error, management.OOM_EXCEPTION)}
        management.unload_all_models()
        gc.collect()
        return {**found, "most": LIVE.most, "capacity": LIVE.capacity, "after": LIVE.now}


def fused_attention(q, k, v):
    """Without attention's matrix in memory, as GPUs compute it: torch has no such kernel for a card
    that it does not know."""
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out.transpose(1, 2).flatten(2)


def observe_batches(host, situation):
    host.models.attention = lambda device: fused_attention
    return {
        "whole": Cramped(host, situation, BATCH).run(),
        "split": Cramped(host, situation, 2).run(),
        "streamed": Cramped(host, situation, 1, weights=0.5).run(),
        "halved": Cramped(host, situation, 1).run(at_once=4),
        "too small": Cramped(host, situation, 0.5, weights=0.0).run(),
    }


def streamed_kinds(loaded):
    """The kinds of layers whose weights are not on the card."""
    kinds = set()
    for patcher in loaded.get_models():
        for layer in patcher.model.modules():
            weight = getattr(layer, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.device.type == "cpu":
                kinds.add(type(layer).__name__)
    return kinds


def write_checkpoints():
    """The names of checkpoints that together have all kinds of layers."""
    write_untrained(FOLDER / "plain")
    tiny.write_checkpoint(FOLDER / "variant-M", "M")
    tie(tiny.write_checkpoint(FOLDER / "tied", "A"))
    for kind in FORMATS:
        convert(FOLDER / "plain", FOLDER / f"{kind}.safetensors", quantize=kind)
    return ["plain", "variant-M", "tied", *(f"{kind}.safetensors" for kind in FORMATS)]


def tie(folder):
    """Make the embedding its head, too."""
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "weight_tying": True}))
    weights = load_file(folder / "model.safetensors")
    del weights["model.transformer.ff_out.weight"]
    save_file(weights, folder / "model.safetensors")


def main():
    folder_paths.add_model_folder_path("mmada_parallel", str(FOLDER))
    from ...nodes import host

    names, situation = write_checkpoints(), Situation()
    situation.pretend()
    with torch.inference_mode(), Card():  # as ComfyUI runs nodes
        found = {
            name: {wanted: observe(host, situation, name, wanted) for wanted in WANTED}
            for name in names
        }
        batches = observe_batches(host, situation)
    print(json.dumps({"checkpoints": found, "batches": batches}))


WANTED = ("all", "some", "none")
if __name__ == "__main__":
    main()

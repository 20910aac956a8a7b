"""Run as ``python -m mmada_parallel.tests.comfyui.streamed_training COMFYUI FOLDER``.

Takes gradients on a card (card.py) that holds all, some or none of the weights; prints JSON.
"""

import gc
import json

import torch
from torch import nn

from .card import CARD, LIVE, Card
from .streaming import (
    FOLDER,
    ROOM,
    WANTED,
    Situation,
    folder_paths,
    management,
    streamed_kinds,
    write_checkpoints,
)

IDS = torch.arange(20)[None]


def gradients(nodes, hosted):
    """A loss, and the sums of its gradients for the weights of adapters."""
    from ...training.weights.policies import LoRA

    transformer = hosted.model.transformer
    with nodes.host.trainable(hosted), LoRA(transformer, rank=2, device=CARD) as lora:
        for number, low_rank in enumerate(lora.low_ranks.values()):
            rng = torch.Generator().manual_seed(number)
            start = torch.empty(low_rank.lora_B.weight.shape)
            nn.init.normal_(start, generator=rng)
            with torch.no_grad():
                low_rank.lora_B.weight.copy_(start.to(CARD))
        hidden = transformer(IDS.to(CARD))
        loss = transformer.logits(hidden, slice(2, 15)).float().log_softmax(-1).sin().sum()
        loss.backward()
        grads = [float(p.grad.to("cpu").double().sum()) for _, p in lora.named_parameters()]
        return float(loss.detach().to("cpu")), grads


def observe(nodes, situation, name, wanted):
    situation.capacity = ROOM
    hosted = nodes.host.load(name, "fp32", "auto")
    room = nodes.host.TrainingMemory(hosted)
    need = room.weights // 2
    if wanted == "some":
        situation.capacity = room.weights
    if wanted == "none":
        management.vram_state = management.VRAMState.NO_VRAM
    told = room.prepare(need)
    management.vram_state = management.VRAMState.NORMAL_VRAM
    resident = LIVE.now
    loss, grads = gradients(nodes, hosted)
    found = {"told": told, "loss": loss, "gradients": grads}
    streamed = sorted(streamed_kinds(hosted))
    gc.collect()
    found |= {"streamed": streamed, "after": LIVE.now - resident}
    management.unload_all_models()
    return found


def main():
    folder_paths.add_model_folder_path("mmada_parallel", str(FOLDER))
    from ... import nodes

    names, situation = write_checkpoints(), Situation()
    situation.pretend()
    with torch.inference_mode(), Card():  # as ComfyUI runs nodes
        found = {
            name: {wanted: observe(nodes, situation, name, wanted) for wanted in WANTED}
            for name in names
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

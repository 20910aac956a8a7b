"""Run as ``python -m mmada_parallel.tests.mmp_core.other_gpu FOLDER``, a process of its own.

Edits, decodes and trains on the card of tests/comfyui/card.py, a device that is neither a CPU nor
CUDA, as Apple's GPUs are; prints as JSON which operations ran there, and which gave float64.
"""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ...mmp_core import SamplerSettings, decode_image, decode_text, denoise, encode_instruction
from ...mmp_core.checkpoint.load import load_checkpoint
from ...mmp_core.sampler import policies, upstream
from ...mmp_core.state import TokenState
from ...training.pararl.run import ParaRLRun
from ...training.sft.run import SFTRun
from ...training.sft.settings import SFTSettings
from ...training.weights.policies import LoRA
from ..comfyui import card
from ..training.tiny_cases import QUICK, cases
from . import tiny

SHORT = {"text_steps": 4, "image_steps": 4}
SETTINGS = [
    *({"speed": speed} for speed in ("exact", "cached", "fast", "fastest")),
    {"text_temperature": 0.5, "reasoning_guidance": 1.0, "image_guidance": 1.0},
    {"remasking": "random"},
]
OPERATIONS, WIDE = {}, set()
_run = card._run


def watched(func, types, args, kwargs):
    out = _run(func, types, args, kwargs)
    if any(isinstance(tensor, card.OnCard) for tensor in card.leaves_of((args, kwargs, out))):
        OPERATIONS[str(func)] = OPERATIONS.get(str(func), 0) + 1
        if any(
            isinstance(tensor, card.OnCard) and tensor.dtype == torch.float64
            for tensor in card.leaves_of((args, kwargs, out))
        ):
            WIDE.add(str(func))
    return out


def tensor(data, dtype=None, device=None, make=torch.tensor):
    """``torch.tensor``, which goes around what the card is made of."""
    return make(data, dtype=dtype).to(device or "cpu")


def new_tensor(like, data):
    return tensor(data).to(like)


def on_card(folder, variant):
    model = load_checkpoint(tiny.write_checkpoint(folder / variant, variant), dtype=torch.float32)
    for part in (model.transformer, model.image_tokenizer):
        part.to(card.CARD)
    model.device = card.CARD
    return model


def edit(model, variant):
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    prompt = encode_instruction(model, "make it red", picture)
    released = SamplerSettings.upstream(variant, **SHORT, text_temperature=1.0)
    changed = SETTINGS if variant == "A" else []
    for settings in [*(SamplerSettings(**SHORT, **changes) for changes in changed), released]:
        final = denoise(model, prompt, settings).final
        decode_text(model, final)
        decode_image(model, final)


def rising(pairs):
    return torch.arange(float(len(pairs)))


def train(model, folder):
    rng = torch.Generator().manual_seed(0)
    answers = [
        TokenState(
            torch.randint(1, 9, (1, 4), generator=rng),
            torch.randint(model.layout.codebook_size, (1, 2, 3), generator=rng),
        )
        for _ in range(4)
    ]
    given = [
        replace(case, target=answer) for case, answer in zip(cases(model, 4), answers, strict=True)
    ]
    pararl = replace(QUICK, steps=1, group_size=2)
    sft = SFTSettings(steps=1, batch_size=2, micro_batch=2, gradient_checkpointing=False)
    with LoRA(model.transformer, rank=2, device=card.CARD) as lora:
        SFTRun(model, given, sft, folder / "sft", policy=lora).train()
        ParaRLRun(model, given, rising, pararl, folder / "pararl", policy=lora).train()


def main(folder):
    card._run = watched
    torch.tensor, torch.Tensor.new_tensor = tensor, new_tensor
    torch.autocast = lambda *_, **__: nullcontext()  # not for this kind of device
    policies.seeded_generators = lambda seeds, device: [torch.Generator() for _ in seeds]
    upstream.seeded_generators = policies.seeded_generators
    with card.Card():
        for variant in ("A", "M"):
            model = on_card(folder, variant)
            edit(model, variant)
        train(model, folder)
    print(json.dumps({"operations": OPERATIONS, "wide": sorted(WIDE)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

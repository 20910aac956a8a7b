"""The demo's CLIP, in open_clip's format: does a result sentence fit a picture?

Half of each batch are pictures of one or two objects with all that is in them said, which teach
the words. The other half are several edits of each scene, so that the negatives are the near
misses: the same objects with another colour, shape or place. Words and patches are dropped now and
then, because the score is also asked of half-denoised pairs.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from ..training.loop.signals import ends_quietly
from .kinds import EDITS, KINDS
from .scenes import random_scene
from .tokenizer import vocabulary, write_tokenizer
from .vq import pixels_of

EDITS_PER_SCENE = 8
_SIDE = 128
_EDITS = [KINDS[name] for name in EDITS]


def clip_config() -> dict[str, Any]:
    """``open_clip_config.json``; load the folder with ``local-dir:``."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": _SIDE,
                "patch_size": 32,
                "width": 160,
                "layers": 4,
                "head_width": 32,
            },
            "text_cfg": {
                "context_length": 24,
                "vocab_size": len(vocabulary()),
                "width": 128,
                "heads": 4,
                "layers": 4,
                "hf_tokenizer_name": "mmada-parallel-demo",
                "pool_type": "last",
                "no_causal_mask": True,
            },
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
    }


Codes = list[list[int]]


def described(rng: random.Random, n: int) -> tuple[list[str], list[Codes]]:
    """``n`` sentences that say all of a picture, and the pictures' codes."""
    tasks = [KINDS["generate"].make(rng, random_scene(rng, (4, 4))) for _ in range(n)]
    return [t.sentence for t in tasks], [t.after.codes() for t in tasks]


def edited(rng: random.Random, scenes: int) -> tuple[list[str], list[Codes]]:
    """``scenes`` × 8 result sentences of edits and the codes of the edited pictures."""
    tasks = []
    for _ in range(scenes):
        scene = random_scene(rng, (4, 4))
        tasks += [kind.make(rng, scene) for kind in rng.choices(_EDITS, k=EDITS_PER_SCENE)]
    return [t.sentence for t in tasks], [t.after.codes() for t in tasks]


def _thinned(rng: random.Random, sentence: str) -> str:
    drop = rng.choice([0.0, 0.0, 0.0, 0.25, 0.5])
    return " ".join(w for w in sentence.split() if rng.random() >= drop)


def _blurred(rng: random.Random, codes: Codes) -> Codes:
    wrong = rng.choice([0.0, 0.0, 0.0, 0.1, 0.3])
    every = [code for row in codes for code in row]
    return [[rng.choice(every) if rng.random() < wrong else c for c in row] for row in codes]


class ClipBatches(Dataset[tuple[list[str], torch.Tensor]]):
    """Sentences and codes (N, 4, 4) of each step."""

    def __init__(self, steps: int, scenes: int, seed: int):
        self.steps, self.scenes, self.seed = steps, scenes, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[list[str], torch.Tensor]:
        rng = random.Random(f"clip {self.seed} {step}")
        sentences, codes = described(rng, self.scenes * EDITS_PER_SCENE)
        harder, more = edited(rng, self.scenes)
        sentences = [_thinned(rng, s) for s in (*sentences, *harder)]
        return sentences, torch.tensor([_blurred(rng, c) for c in (*codes, *more)])


def train_clip(
    folder: Path, *, steps: int, device: str, scenes: int = 16, seed: int = 0, workers: int = 0
) -> None:
    """Train from nothing and write ``folder`` for ``open_clip``'s ``local-dir:``."""
    import open_clip
    from safetensors.torch import save_file

    from ..mmp_core.files import replacing

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(clip_config(), indent=1))
    write_tokenizer(folder)
    torch.manual_seed(seed)
    name = f"local-dir:{folder}"
    model = open_clip.create_model(name, load_weights=False, device=device)
    tokenize = open_clip.get_tokenizer(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, total_steps=steps, pct_start=0.1
    )
    batches = DataLoader(
        ClipBatches(steps, scenes, seed),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=ends_quietly,
    )
    for step, (sentences, codes) in enumerate(batches):
        pictures = pixels_of(codes.to(device)) * 2 - 1
        with torch.autocast(device, torch.bfloat16):
            image, text, scale = model(pictures, tokenize(sentences).to(device))
        logits = scale * image.float() @ text.float().T
        target = torch.arange(len(logits), device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.get_parameter("logit_scale").clamp_(max=4.6)
        if step % 200 == 199:
            print(f"clip step {step + 1}: loss {loss.item():.3f}", flush=True)
    accuracy = near_miss_accuracy(model, tokenize, device)
    print(f"clip: right one of 8 edits of a scene in {accuracy:.3f}", flush=True)
    with replacing(folder / "open_clip_model.safetensors") as path:
        weights = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
        save_file(weights, path, metadata={"format": "pt"})


@torch.no_grad()
def near_miss_accuracy(model: Any, tokenize: Any, device: str, scenes: int = 60) -> float:
    """Share of held-out sentences whose own picture scores highest among 8 edits of one scene."""
    sentences, codes = edited(random.Random(10**9), scenes)
    pictures = pixels_of(torch.tensor(codes, device=device)) * 2 - 1
    image, text, _ = model(pictures, tokenize(sentences).to(device))
    scores = text.view(scenes, EDITS_PER_SCENE, -1) @ image.view(scenes, EDITS_PER_SCENE, -1).mT
    best = scores.argmax(dim=-1).cpu()
    return float((best == torch.arange(EDITS_PER_SCENE)).float().mean())

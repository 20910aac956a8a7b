"""Seconds per edit and per training step of the released 8B model on common cards, computed.

``python -m mmada_parallel.benchmarks.cards`` writes the table of docs/your-card.md: FLOPs counted
from shapes, over each card's peak, at the share of the peak that was measured on one card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from mmada_parallel.benchmarks.shapes import RELEASED, TINY, RandomModel
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.training.pararl.settings import ROLLOUT_SAMPLER, ParaRLSettings
from mmada_parallel.training.sft.settings import SFTSettings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "your-card.md"
BEGIN, END = "<!-- made by benchmarks/cards.py -->", "<!-- until here -->"
RESULTS = Path(__file__).parent / "results"


class Card(NamedTuple):
    """``memory``: GB. ``tflops``: dense bf16 with float32 accumulation, as NVIDIA states it."""

    name: str
    memory: int
    tflops: float


CARDS = (
    Card("RTX 3060", 12, 25.5),
    Card("RTX 4060 Ti", 16, 44.1),
    Card("RTX 5060 Ti", 16, 47.4),
    Card("RTX 4070", 12, 58.3),
    Card("RTX 5070", 12, 61.7),
    Card("RTX 3090", 24, 71.0),
    Card("RTX 4080", 16, 97.5),
    Card("RTX 5080", 16, 112.6),
    Card("RTX 4090", 24, 165.2),
    Card("RTX 5090", 32, 209.5),
    Card("A100", 80, 312.0),
    Card("H100", 80, 989.0),
)
_H200 = 989.0
_WEIGHTS, _RESERVE = {"bf16": 16.2 + 0.6, "int8": 9.2 + 0.6, "nvfp4": 6.1 + 0.6}, 0.7
_EDIT, _DEQUANTISED = {"exact": 0.4, "cached": 3.0}, 0.2
"""GB: transformer and image tokenizer; what ComfyUI keeps free; one edit, and one layer more while
it is dequantised (docs/results.md)."""


def share_of_peak() -> float:
    """Of the stated peak of an H200 that a forward of the 8B shape reached."""
    measured = json.loads((RESULTS / "gpu.json").read_text(encoding="utf-8"))
    return measured["result"]["forward_tflops"] / _H200


def edit_flop() -> dict[str, float]:
    """FLOPs of an edit of 512x512 by default settings, counted, by the level of ``speed``."""
    counted = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    edits = counted["result"]["released_shape"]
    (default,) = [counts for name, counts in edits.items() if name.startswith("defaults")]
    return {level: pflop * 1e15 for level, pflop in default["pflop"].items()}


def training_flop() -> dict[str, float]:
    """FLOPs of a step by default settings with gradient checkpointing, 512x512 and 256 words.

    An update is a forward, the same again in the backward, and the gradients of activations, which
    cost as much as a forward for linear layers and twice as much for attention; weights have none.
    """
    model, config = (
        RandomModel.of(TINY, torch.device("cpu"), torch.float32),
        ModelConfig(**RELEASED),
    )
    prompt = model.prompt(32, 256)
    length = model.layout.model_input(prompt, prompt.initial).ids.shape[1]
    forward = config.forward_flop(length)
    linear = config.forward_flop(length, 0)
    update = 3 * linear + 4 * (forward - linear)
    settings, sampler = ParaRLSettings(), ROLLOUT_SAMPLER
    guided = sampler.joint_guidance != 0
    # at a scored step, at most: the guesses that are scored, the reference's log-probs, an update
    scored = (1 + (settings.reward_at == "gain")) * forward + (1 + guided) * (forward + update)
    answer = (sampler.text_steps + guided * sampler.image_steps) * forward
    answer += settings.scored_steps * scored
    return {
        "SFT": SFTSettings().batch_size * update,
        "ParaRL": settings.groups * settings.group_size * answer,
    }


def fits(card: Card) -> str:
    """How the weights are best stored there, and whether they all fit beside an edit."""
    names = []
    for level, edit in _EDIT.items():
        kept = [
            form
            for form, weights in _WEIGHTS.items()
            if weights + edit + _RESERVE + _DEQUANTISED * (form != "bf16") <= card.memory
        ]
        names.append(f"{level}: {kept[0] if kept else 'nvfp4, streamed in part'}")
    return "; ".join(names)


def rounded(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.{int(seconds < 600)}f} min"
    return f"{seconds / 3600:.1f} h"


def table() -> str:
    share, edits, training = share_of_peak(), edit_flop(), training_flop()
    head = ["card", "memory", "what fits", "edit", "edit, cached", "SFT step", "ParaRL step"]
    rows = [head, ["---"] * len(head)]
    for card in CARDS:
        costs = (*edits.values(), *training.values())
        seconds = [flop / (card.tflops * 1e12 * share) for flop in costs]
        times = [rounded(value) for value in seconds]
        rows.append([card.name, f"{card.memory} GB", fits(card), *times])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def filled(page: str) -> str:
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

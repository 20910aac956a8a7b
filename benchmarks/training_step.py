"""A step of SFT with LoRA beside the same by peft and transformers, on the same shapes.

``python -m mmada_parallel.benchmarks.training_step [--preset small|mid] [--repeats 3]`` prints
JSON: FLOPs of forward and backward as PyTorch counts them, CPU seconds by part, tokens per CPU
second, and the ratios. Both have random float32 weights, the released vocabulary, rank 16 on all
linear layers of the blocks, the same sequence with the same masked tokens, attention in both
directions, cross-entropy over the whole vocabulary, and AdamW. Theirs is LlamaForCausalLM in a
plain loop, which computes the logits of every token.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from mmada_parallel.benchmarks.measure import name_of, parser_of
from mmada_parallel.benchmarks.sampler import PRESETS
from mmada_parallel.benchmarks.shapes import RELEASED, RandomModel
from mmada_parallel.mmp_core import TokenState
from mmada_parallel.training.sft.batches import MicroBatch
from mmada_parallel.training.sft.loss import Condition, draw_masks, masked_losses
from mmada_parallel.training.weights.policies import LoRA
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

RANK = 16
PEFT_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PARTS = ("forward", "backward", "update")
SIZES = ("d_model", "n_layers", "n_heads", "mlp_hidden_size")
Loss = Callable[[], Tensor]


def shapes(preset: str) -> tuple[dict[str, int], int, int]:
    """Sizes of a model, and the answer's grid and words."""
    wanted = PRESETS[preset]
    sizes = {name: wanted[name] for name in SIZES} | {"n_kv_heads": wanted["n_heads"]}
    return sizes, wanted["grid"], wanted["text"]


def batch_of(model: RandomModel, grid: int, text: int) -> MicroBatch:
    """One sequence with an answer, of which a part is masked."""
    prompt, generator = model.prompt(grid, text), torch.Generator().manual_seed(2)
    words = torch.randint(0, 126000, (1, text), generator=generator)
    codes = torch.randint(0, model.layout.codebook_size, (1, grid, grid), generator=generator)
    target = TokenState(words, codes)
    masks = draw_masks(target, generator)
    return MicroBatch(replace(prompt, initial=target), target, None, Condition(), *masks)


def ours(model: RandomModel, batch: MicroBatch) -> tuple[Loss, list[Tensor]]:
    """The loss, and what is trained."""
    policy = LoRA(model.transformer, rank=RANK)

    def loss() -> Tensor:
        losses = masked_losses(model.transformer, model.layout, batch)
        return losses.text + losses.image

    return loss, list(policy.parameters())


def theirs(model: RandomModel, batch: MicroBatch) -> tuple[Loss, list[Tensor]]:
    """The same by transformers and peft."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config, layout = model.transformer.config, model.layout
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.embedding_size,
            hidden_size=config.d_model,
            intermediate_size=config.mlp_hidden_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            max_position_embeddings=8192,
            use_cache=False,
        )
    )
    adapter = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PEFT_LAYERS)
    trained = get_peft_model(llama, adapter)
    whole = layout.model_input(batch.prompt, batch.target)
    ids, labels = whole.ids.clone(), torch.full_like(whole.ids, -100)
    for places, mask in (
        (whole.text_positions, batch.text_mask),
        (whole.image_positions, batch.image_mask),
    ):
        at = places[mask[0]]
        labels[0, at], ids[0, at] = whole.ids[0, at], layout.mask_id
    both_ways = torch.zeros(1, 1, ids.shape[1], ids.shape[1])

    def loss() -> Tensor:
        return trained(input_ids=ids, attention_mask=both_ways, labels=labels).loss

    return loss, [weight for weight in trained.parameters() if weight.requires_grad]


def flop(loss: Loss) -> float:
    """Of forward and backward, attention as two products."""
    with FlopCounterMode(display=False) as mode, sdpa_kernel(SDPBackend.MATH):
        loss().backward()
    return float(mode.get_total_flops())


def timed(loss: Loss, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """CPU seconds of each part of one step."""
    times = [time.process_time()]
    value = loss()
    times.append(time.process_time())
    value.backward()
    times.append(time.process_time())
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.process_time())
    return {part: times[i + 1] - times[i] for i, part in enumerate(PARTS)}


def compare(preset: str, repeats: int) -> dict[str, Any]:
    sizes, grid, text = shapes(preset)
    model = RandomModel.of(sizes, torch.device("cpu"), torch.float32)
    batch = batch_of(model, grid, text)
    tokens = model.layout.model_input(batch.prompt, batch.target).ids.shape[1]
    masked = int(batch.text_mask.sum() + batch.image_mask.sum())
    sides = {"peft": theirs(model, batch), "ours": ours(model, batch)}
    results: dict[str, Any] = {name: {"flop": flop(loss)} for name, (loss, _) in sides.items()}
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    optimizers = {name: torch.optim.AdamW(weights) for name, (_, weights) in sides.items()}
    for _ in range(repeats):  # in turn, so that other work on the machine disturbs both
        for name, (loss, _) in sides.items():
            steps[name].append(timed(loss, optimizers[name]))
    for name, taken in steps.items():
        parts = {part: statistics.median(step[part] for step in taken) for part in PARTS}
        whole = statistics.median(sum(step.values()) for step in taken)
        results[name] |= {"cpu_seconds": parts, "tokens_per_cpu_second": tokens / whole}
    rates = [results[name]["tokens_per_cpu_second"] for name in ("ours", "peft")]
    return {
        "preset": preset,
        "machine": f"{torch.get_num_threads()} threads, {name_of(model.device)}",
        "sequence": {"tokens": tokens, "masked": masked, "vocabulary": RELEASED["embedding_size"]},
        **results,
        "flop_ratio": results["peft"]["flop"] / results["ours"]["flop"],
        "speed_ratio": rates[0] / rates[1],
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="mid")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(compare(args.preset, args.repeats), indent=1))


if __name__ == "__main__":
    main()

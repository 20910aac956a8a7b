"""The released shape (8B, variant A, 512×512) with random weights on a GPU.

``python -m mmada_parallel.benchmarks.gpu`` prints JSON: seconds per edit, TFLOP/s of one forward
against a measured matmul peak, and memory. Times do not depend on the weights' values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import torch
from mmada_parallel.mmp_core.config import ModelConfig
from mmada_parallel.mmp_core.layout.variant_a import VariantA
from mmada_parallel.mmp_core.sampler import SamplerSettings, denoise
from mmada_parallel.mmp_core.state import Prompt, TokenState
from mmada_parallel.mmp_core.transformer import MaskedDiffusionTransformer

RELEASED = {
    "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12288,
    "embedding_size": 134656, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
    "mask_token_id": 126336, "eos_token_id": 126081,
}  # fmt: skip
EDITS = {
    "published": SamplerSettings(),
    "no guidance": SamplerSettings(joint_guidance=0.0),
    "128 text, 64 image steps, image guidance 4": SamplerSettings(
        image_steps=64, joint_guidance=0.0, image_guidance=4.0
    ),
}


class NoTokenizer:
    """Knows no token, so that the layout takes the released ids."""

    unk_token_id = None

    def convert_tokens_to_ids(self, name: str) -> None:
        return None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(range(1000, 1042))}


def random_model(device: torch.device) -> SimpleNamespace:
    transformer = MaskedDiffusionTransformer(
        ModelConfig(**RELEASED), dtype=torch.bfloat16, device=device
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
    layout = VariantA(NoTokenizer(), {"mask_token_id": RELEASED["mask_token_id"]})
    return SimpleNamespace(transformer=transformer, layout=layout, device=device)


def random_prompt(layout: VariantA) -> Prompt:
    """60 instruction tokens, a 32×32 input picture, an undecided 32×32 answer with 256 words."""
    rng = torch.Generator().manual_seed(0)
    words = torch.randint(0, 126000, (1, 60), generator=rng)
    picture = torch.randint(0, layout.codebook_size, (1, 32, 32), generator=rng)
    return Prompt(words, words[:, :42], picture, TokenState.masked(1, 256, (32, 32)))


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall time of ``run``, once warm."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_peak(device: torch.device) -> float:
    """TFLOP/s of an 8192³ bf16 product of random numbers."""
    a, b = torch.randn(2, 8192, 8192, device=device, dtype=torch.bfloat16)
    seconds(lambda: a @ b, 5)
    return 2 * 8192**3 / seconds(lambda: a @ b, 20) / 1e12


def forward_flop(config: ModelConfig, tokens: int) -> float:
    """Multiply-adds of the blocks and attention, times two; no logits."""
    linear = 4 * config.d_model**2 + 3 * config.d_model * config.mlp_hidden_size
    return 2.0 * config.n_layers * tokens * (linear + 2 * tokens * config.d_model)


@torch.no_grad()
def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA GPU here, which this measures.")
    device = torch.device("cuda")
    peak = matmul_peak(device)
    model = random_model(device)
    prompt = random_prompt(model.layout).to(device)
    ids = model.layout.sequence(prompt, prompt.initial).ids
    model.transformer(ids)
    forward = seconds(lambda: model.transformer(ids), 10)
    rate = forward_flop(model.transformer.config, ids.shape[1]) / forward / 1e12
    found = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tokens": ids.shape[1],
        "forward_seconds": forward,
        "forward_tflops": rate,
        "matmul_peak_tflops": peak,
        "forward_share_of_peak": rate / peak,
        "weights_gb": torch.cuda.memory_allocated() / 1e9,
        "edits": {},
    }
    for name, settings in EDITS.items():
        denoise(model, prompt, replace(settings, text_steps=4, image_steps=3))
        torch.cuda.reset_peak_memory_stats()
        edit = seconds(lambda s=settings: denoise(model, prompt, s, record=0), 1)
        memory = torch.cuda.max_memory_allocated() / 1e9
        found["edits"][name] = {"seconds": edit, "peak_memory_gb": memory}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

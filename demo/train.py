"""Train the demo checkpoint from nothing: ``python -m mmada_parallel.demo.train``.

Stages, each skipped when its result is there: tokenizer and configuration, image tokenizer, CLIP,
transformer (the long one, resumable at any step), and the checkpoint folder in the released layout.
``torchrun --nproc-per-node 2 -m mmada_parallel.demo.train`` spreads the transformer over processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..mmp_core.config import ModelConfig
from ..mmp_core.layout.variant_a import VariantA
from ..mmp_core.transformer import MaskedDiffusionTransformer, sdpa_attention
from ..training.files import replacing
from ..training.run import SFTRun, SFTSettings, initialise
from .clip import train_clip
from .dataset import WorldDataset
from .tokenizer import model_config, write_tokenizer
from .vq import train_vq

SIZES = {"d_model": 256, "n_layers": 8, "n_heads": 4, "mlp_hidden_size": 512}
RECIPE = {"muon": True, "drop_text": 0.05, "drop_image": 0.05, "drop_both": 0.1}
"""What the demo's ``SFTSettings`` share, whatever the length of the run."""
ENCODER_STEPS, DECODER_STEPS = 1500, 4000


def short_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by two matmuls, for the short sequences of the demo on a CPU."""
    q, k, v = (t.bfloat16() for t in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def transformer_run(folder: Path, settings: SFTSettings, device: str) -> SFTRun:
    """The SFT run in ``folder``, resumed if it has begun; writes configuration and tokenizer."""
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(**SIZES)
    if not (folder / "config.json").exists():
        write_tokenizer(folder)
        (folder / "config.json").write_text(json.dumps(config, indent=1))
    layout = VariantA(PreTrainedTokenizerFast.from_pretrained(folder), config)
    attention = short_attention if device == "cpu" else sdpa_attention
    model = MaskedDiffusionTransformer(
        ModelConfig.from_dict(config), attention=attention, device=device
    )
    initialise(model, settings.seed)
    run = SFTRun(model, layout, WorldDataset(layout), settings, folder)
    if run.resume():
        print(f"resuming at step {run.step}", flush=True)
    return run


def write_checkpoint(folder: Path, run: SFTRun, out: Path) -> None:
    """Collect the parts under ``folder`` into ``out`` in the released layout, weights in bf16."""
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.bfloat16().cpu() for name, tensor in run.average.items()}
    with replacing(out / "model.safetensors") as path:
        save_file(weights, path, metadata={"format": "pt", "sft_steps": str(run.step)})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(run.folder / name, out / name)
    for part in ("vqvae", "clip"):
        (out / part).mkdir(exist_ok=True)
        for file in sorted((folder / part).iterdir()):
            if file.suffix == ".safetensors":
                small = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
                with replacing(out / part / file.name) as path:
                    save_file(small, path, metadata={"format": "pt"})
            else:
                shutil.copyfile(file, out / part / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="working folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("checkpoint"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--decay-steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--clip-steps", type=int, default=10000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 2))
    args = parser.parse_args()
    settings = SFTSettings(
        steps=args.steps, batch_size=args.batch_size, decay_steps=args.decay_steps,
        window=args.window, micro_batch=args.micro_batch, workers=args.workers,
        learning_rate=args.learning_rate, **RECIPE,
    )  # fmt: skip
    if "WORLD_SIZE" in os.environ:
        backend = "gloo" if args.device == "cpu" else "nccl"
        dist.init_process_group(backend, timeout=timedelta(hours=12))
    run = transformer_run(args.folder / "sft", settings, args.device)
    if run.rank == 0:
        if not (args.folder / "vqvae").exists():
            train_vq(
                args.folder, encoder_steps=ENCODER_STEPS, decoder_steps=DECODER_STEPS,
                device=args.device,
            )  # fmt: skip
        if not (args.folder / "clip" / "open_clip_model.safetensors").exists():
            train_clip(
                args.folder / "clip", steps=args.clip_steps, device=args.device,
                workers=args.workers,
            )  # fmt: skip
    run.train(lambda step, line: print(json.dumps(line), flush=True))
    if run.rank == 0:
        write_checkpoint(args.folder, run, args.out)


if __name__ == "__main__":
    main()

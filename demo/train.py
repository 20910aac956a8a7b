"""Train the demo checkpoint from nothing: ``python -m mmada_parallel.demo.train``.

Stages, each skipped when its result is there: tokenizer and configuration, image tokenizer, CLIP,
transformer (the long one, resumable at any step), and the checkpoint folder in the released layout.
``torchrun --nproc-per-node 2 -m mmada_parallel.demo.train`` spreads the transformer over processes.
The defaults are the device's own: thousands of examples per step on a GPU, 128 on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..mmp_core.files import replacing
from ..mmp_core.model.config import ModelConfig
from ..mmp_core.model.transformer import MaskedDiffusionTransformer, sdpa_attention
from ..mmp_core.variants.mmada_parallel_a import LayoutA
from ..training.sft.pretrain import SFTRun, SFTSettings, initialise
from .clip import train_clip
from .dataset import WorldDataset
from .tokenizer import model_config, write_tokenizer
from .vq import train_vq

SIZES = {"d_model": 256, "n_layers": 6, "n_heads": 4, "mlp_hidden_size": 512}
RECIPES = {
    "cpu": SFTSettings(
        steps=3000,
        decay_steps=1000,
        batch_size=128,
        learning_rate=8e-4,
        muon=True,
        drop_text=0.03,
        drop_image=0.03,
        drop_both=0.04,
    ),
    "cuda": SFTSettings(
        steps=4000,
        decay_steps=3400,
        batch_size=2048,
        window=16,
        micro_batch=2048,
        learning_rate=8e-4,
        warmup_steps=50,
        ema=0.995,
        bf16=False,
        muon=True,
        drop_text=0.03,
        drop_image=0.02,
        drop_both=0.06,
    ),
}
"""So small a model is bound by the number of launches on a GPU: few large batches of one shape, and
no autocast, whose casts about double the copies (float32 in TF32 instead)."""
ENCODER_STEPS, DECODER_STEPS, CLIP_STEPS = 1500, 4000, 7000


def recipe_for(device: str) -> SFTSettings:
    """``RECIPES``, that of a CPU for any device that is not CUDA."""
    return RECIPES.get(device, RECIPES["cpu"])


def short_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by two matmuls, for the short sequences of the demo on a CPU."""
    dtype, (q, k, v) = q.dtype, (t.bfloat16() for t in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    mixed = scores.float().softmax(-1).to(v.dtype) @ v
    return mixed.transpose(1, 2).flatten(2).to(dtype)


def transformer_run(
    folder: Path, settings: SFTSettings, device: str, start: Path | None = None
) -> SFTRun:
    """The SFT run in ``folder``, resumed if it has begun; writes configuration and tokenizer.

    ``start``: a checkpoint whose weights a new run begins with.
    """
    from safetensors.torch import load_model
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(**SIZES)
    if not (folder / "config.json").exists():
        write_tokenizer(folder)
        (folder / "config.json").write_text(json.dumps(config, indent=1))
    layout = LayoutA(PreTrainedTokenizerFast.from_pretrained(folder), config)
    attention = short_attention if device == "cpu" else sdpa_attention
    model = MaskedDiffusionTransformer(ModelConfig.from_dict(config), attention=attention)
    initialise(model, settings.seed)
    if start is not None:
        load_model(model, start / "model.safetensors")
    model.to(device)
    dataset = WorldDataset(layout, same_grid=settings.window * settings.batch_size)
    run = SFTRun(model, layout, dataset, settings, folder)
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
    parser.add_argument("--start", type=Path, help="checkpoint folder to train further")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 2))
    for name in ("steps", "decay_steps", "batch_size"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--clip-steps", type=int, default=CLIP_STEPS)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    recipe = replace(recipe_for(args.device), workers=args.workers)
    chosen = {name: getattr(args, name) for name in ("steps", "decay_steps", "batch_size")}
    settings = replace(recipe, **{name: value for name, value in chosen.items() if value})
    if "WORLD_SIZE" in os.environ:
        backend = "gloo" if args.device == "cpu" else "nccl"
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend, timeout=timedelta(hours=12))
    run = transformer_run(args.folder / "sft", settings, args.device, args.start)
    if run.rank == 0:
        if not (args.folder / "vqvae").exists():
            train_vq(
                args.folder,
                encoder_steps=ENCODER_STEPS,
                decoder_steps=DECODER_STEPS,
                device=args.device,
            )
        if not (args.folder / "clip" / "open_clip_model.safetensors").exists():
            train_clip(
                args.folder / "clip",
                steps=args.clip_steps,
                device=args.device,
                workers=args.workers,
            )
    run.train(lambda step, line: print(json.dumps(line), flush=True))
    if run.rank == 0:
        write_checkpoint(args.folder, run, args.out)


if __name__ == "__main__":
    main()

"""Train the demo checkpoint from nothing: ``python -m mmada_parallel.demo.train``.

Stages, each skipped when its result is there: image tokenizer, CLIP, transformer (the long one, an
SFT run that resumes at any step), and the checkpoint folder in the released layout.
``accelerate launch -m mmada_parallel.demo.train`` spreads the transformer over processes. The
defaults are the device's own: thousands of examples per step on a GPU, 128 on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..mmp_core.checkpoint.load import load_checkpoint
from ..mmp_core.files import replacing
from ..mmp_core.model.config import ModelConfig
from ..mmp_core.model.transformer import MaskedDiffusionTransformer, sdpa_attention
from ..mmp_core.variants.base import Layout
from ..training.cases import EndlessCases
from ..training.data.guard import GUARD
from ..training.loop.ranks import Ranks, launched_ranks
from ..training.sft.run import SFTRun
from ..training.sft.settings import SFTSettings
from ..training.weights.initial import initialise
from ..training.weights.policies import FullWeights
from . import world
from .clip import train_clip
from .dataset import HELD_OUT, WorldCases
from .kinds import KINDS
from .tokenizer import model_config, write_tokenizer
from .vq import train_vq
from .worlds import AnyTask

SIZES = {"d_model": 256, "n_layers": 6, "n_heads": 4, "mlp_hidden_size": 512}
CPU_RECIPE = SFTSettings(
    steps=3000,
    batch_size=128,
    micro_batch=256,
    learning_rate=8e-4,
    schedule="linear",
    decay_steps=1000,
    warmup_steps=100,
    optimizer="muon",
    weight_decay=0.01,
    ema=0.999,
    gradient_checkpointing=False,
    checkpoint_every=200,
    bf16=True,
    drop_text=0.03,
    drop_image=0.03,
    drop_both=0.04,
)
CUDA_RECIPE = replace(
    CPU_RECIPE,
    steps=4000,
    batch_size=2048,
    micro_batch=2048,
    window=16,
    decay_steps=3400,
    warmup_steps=50,
    ema=0.995,
    bf16=False,
    drop_image=0.02,
    drop_both=0.06,
)
"""So small a model is bound by the number of launches on a GPU: few large batches of one shape, and
no autocast, whose casts about double the copies (float32 in TF32 instead)."""
_GUARD_SEED, _GUARD_OF_KIND = HELD_OUT + 10**8, 4
ENCODER_STEPS, DECODER_STEPS, CLIP_STEPS = 1500, 4000, 7000


def recipe_for(device: str) -> SFTSettings:
    return CUDA_RECIPE if device == "cuda" else for_processor(CPU_RECIPE)


def for_processor(settings: SFTSettings) -> SFTSettings:
    """``settings`` with the dtype that this processor is faster in: without matrix units a step in
    bfloat16 takes 1.6 times as long."""
    return replace(settings, bf16=has_matrix_units())


def has_matrix_units() -> bool:
    """Whether the processor has units for matrices in bfloat16 (AMX)."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(asked and asked())


@dataclass(frozen=True)
class Recipe:
    """What a world's checkpoint is made of.

    ``said``: its words, ``None`` for the toy's. ``config``: of the model, but its sizes. ``cases``:
    what it is trained on. ``guard``: tasks that it is never trained on, which go with it.
    ``colours``: that their pictures are reduced to, if to any. ``layers``: a checkpoint of the same
    sizes whose layers it begins with, if any, but for embedding and head.
    """

    said: Sequence[str] | None
    config: Mapping[str, Any]
    cases: Callable[[Layout, SFTSettings], EndlessCases]
    guard: Sequence[AnyTask[Any]]
    colours: int | None = None
    layers: Path | None = None

    def model_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {**SIZES, **self.config}
        return model_config(self.said, **config)


def toy() -> Recipe:
    kinds = (kind for kind in KINDS for _ in range(_GUARD_OF_KIND))
    return Recipe(
        None,
        {},
        lambda layout, settings: WorldCases(layout, settings.window * settings.batch_size),
        [world.task(_GUARD_SEED + n, kinds=(kind,)) for n, kind in enumerate(kinds)],
        colours=16,
    )


def short_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by two matmuls in bfloat16, for the short sequences of the demo on a CPU."""
    dtype, (q, k, v) = q.dtype, (t.bfloat16() for t in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    mixed = scores.float().softmax(-1).to(v.dtype) @ v
    return mixed.transpose(1, 2).flatten(2).to(dtype)


def transformer_run(
    folder: Path,
    settings: SFTSettings,
    device: str,
    parts: Path,
    *,
    start: Path | None = None,
    ranks: Ranks | None = None,
    recipe: Recipe | None = None,
) -> SFTRun:
    """The SFT run in ``folder``.

    ``parts``: where image tokenizer and CLIP are. ``start``: a checkpoint whose weights a new run
    begins with, random ones if ``None``.
    """
    recipe = recipe or toy()
    attention = short_attention if device == "cpu" and settings.bf16 else sdpa_attention
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        if start is None:
            start = Path(temporary)
            transformer = MaskedDiffusionTransformer(ModelConfig.from_dict(recipe.model_config()))
            initialise(transformer, settings.seed)
            if recipe.layers:
                transformer.blocks.load_state_dict(_layers_of(recipe.layers))
            write_checkpoint(start, parts, transformer.state_dict(), recipe=recipe)
        model = load_checkpoint(start, device=device, dtype=torch.float32, attention=attention)
    return SFTRun(
        model,
        recipe.cases(model.layout, settings),
        settings,
        folder,
        policy=FullWeights(model.transformer),
        ranks=ranks,
    )


def _layers_of(checkpoint: Path) -> dict[str, Tensor]:
    prefix = "model.transformer.blocks."
    weights = load_file(checkpoint / "model.safetensors")
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def write_result(
    run: SFTRun,
    parts: Path,
    out: Path,
    weights: Mapping[str, Tensor],
    recipe: Recipe | None = None,
    **metadata: str,
) -> Path:
    """Write the trained ``weights`` to the folder ``out``, in bf16."""
    halved = {name: weight.bfloat16().cpu() for name, weight in weights.items()}
    write_checkpoint(out, parts, halved, {"sft_steps": str(run.step), **metadata}, recipe)
    return out


def write_checkpoint(
    out: Path,
    parts: Path,
    weights: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    recipe: Recipe | None = None,
) -> None:
    """A checkpoint of ``weights`` in the released layout, with what the folder ``parts`` holds of
    image tokenizer and CLIP (in bf16)."""
    out.mkdir(parents=True, exist_ok=True)
    recipe = recipe or toy()
    write_tokenizer(out, recipe.said)
    (out / "config.json").write_text(json.dumps(recipe.model_config(), indent=1))
    for file in (f for part in ("vqvae", "clip") for f in sorted((parts / part).glob("*"))):
        copy = out / file.parent.name / file.name
        if copy == file:
            continue
        copy.parent.mkdir(exist_ok=True)
        if file.suffix == ".safetensors":
            save_tensors(
                copy, {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
            )
        else:
            shutil.copyfile(file, copy)
    save_tensors(out / "model.safetensors", weights, metadata)
    write_guard(out / "guard", recipe)


def write_guard(folder: Path, recipe: Recipe) -> None:
    folder.mkdir(exist_ok=True)
    lines = []
    for number, task in enumerate(recipe.guard):
        line = {"instruction": task.instruction, "think": task.sentence}
        for role, scene in (("image", task.before), ("target", task.after)):
            if scene is not None:
                line[role] = f"{number:02}.{role}.png"
                picture = scene.picture()
                if recipe.colours:
                    picture = picture.quantize(recipe.colours)
                picture.save(folder / line[role], optimize=True)
        lines.append(json.dumps(line) + "\n")
    (folder / GUARD).write_text("".join(lines), encoding="utf-8")


def save_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    with replacing(file) as path:
        save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})


def _train_parts(folder: Path, device: str, clip_steps: int, workers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "vqvae").exists():
        train_vq(folder, encoder_steps=ENCODER_STEPS, decoder_steps=DECODER_STEPS, device=device)
    if not (folder / "clip" / "open_clip_model.safetensors").exists():
        train_clip(folder / "clip", steps=clip_steps, device=device, workers=workers)


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
    names = ("steps", "decay_steps", "batch_size")
    chosen = {name: getattr(args, name) for name in names if getattr(args, name)}
    settings = replace(recipe_for(args.device), workers=args.workers, **chosen)
    ranks = launched_ranks(args.device)
    with ranks.first_one_first():
        if ranks.first:
            _train_parts(args.folder, args.device, args.clip_steps, args.workers)
    run = transformer_run(
        args.folder / "sft", settings, args.device, args.folder, start=args.start, ranks=ranks
    )
    if run.resume():
        print(f"resuming after step {run.step}", flush=True)
    run.train(lambda step, line: ranks.first and print(json.dumps(line), flush=True))
    with run.averaged():
        if ranks.first:
            write_result(run, args.folder, args.out, run.policy.state_dict())
    ranks.close()


if __name__ == "__main__":
    main()

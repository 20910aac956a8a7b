"""``train sft``: the toy world's transformer from nothing, or any checkpoint on a dataset."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ..demo.train import recipe_for, transformer_run, write_checkpoint
from ..mmp_core import InputError
from ..mmp_core.checkpoint.load import DEMO
from .model import memory_explained, pick_device

_FOLDER = Path("build/sft")
_ONLY_WITH_DATA = (
    "output",
    "cases",
    "text_length",
    "image_tokenizer",
    "run_folder",
    "full",
    "lora",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "clip_norm",
    "micro_batch",
    "checkpoint_every",
)


def sft(args: argparse.Namespace) -> None:
    if args.data is not None:
        finetune(args)
    else:
        from_nothing(args)


def finetune(args: argparse.Namespace) -> None:
    for option, given in (("--folder", args.folder), ("--decay-steps", args.decay_steps)):
        if given:
            raise InputError(
                f"{option} is for training from nothing, without --data; with it there are "
                "--run-folder and --schedule."
            )
    if args.output is None:
        raise InputError("--data needs --output FILE.safetensors: where the adapter goes.")
    from .finetune import sft

    sft(args)


def from_nothing(args: argparse.Namespace) -> None:
    given = [name for name in _ONLY_WITH_DATA if getattr(args, name)]
    if given or args.model != "demo":
        option = (given or ["model"])[0].replace("_", "-")
        raise InputError(f"--{option} needs --data: without it the toy world's model is trained.")
    folder = args.folder or _FOLDER
    _check_folder(folder, args.resume)
    steps = args.steps or 3000
    device = pick_device(args.device)
    recipe = recipe_for(device)
    settings = replace(
        recipe,
        steps=steps,
        batch_size=args.batch_size or recipe.batch_size,
        learning_rate=args.learning_rate or 8e-4,
        decay_steps=args.decay_steps or max(1, steps // 3),
        seed=args.seed or 0,
    )
    with memory_explained():
        run = transformer_run(folder, settings, device)
        with tqdm(
            total=steps, initial=run.step, desc="training", unit="step", disable=args.quiet
        ) as bar:

            def show(step: int, metrics: dict[str, float]) -> None:
                bar.set_postfix(text=metrics["text_loss"], image=metrics["image_loss"])
                bar.update(step - bar.n)

            run.train(show)
    out = folder / "checkpoint"
    write_checkpoint(DEMO, run, out)
    print(f"{out}  ({run.step} steps)")


def _check_folder(folder: Path, resume: bool) -> None:
    begun = (folder / "run.pt").exists()
    if begun and not resume:
        raise InputError(
            f"{folder} holds a run: --resume continues it, --folder starts another elsewhere."
        )
    if resume and not begun:
        raise InputError(f"{folder} holds no run to resume.")
    if not (DEMO / "vqvae").is_dir():
        raise InputError(
            f"{DEMO} has no vqvae folder: the demo's image tokenizer, which this run shares, is "
            "missing; install the package again."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror or error}).") from None

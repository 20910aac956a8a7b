"""From options to a loaded model and sampler settings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ..mmp_core import InputError, Model, SamplerSettings
from ..mmp_core.checkpoint.adapters import adapter_file, build_adapter, doubt_about, read_adapter
from ..mmp_core.checkpoint.load import load_source, open_checkpoint
from ..mmp_core.memory import OutOfMemory, is_out_of_memory
from ..mmp_core.options import options_of
from .options import given

_WRITTEN = ("out", "text_out", "mask_out", "output")
"""Options that name a file to be written."""


def pick_device(name: str) -> str:
    """The device called ``name``, or the best one for "auto"."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, is_there in available.items() if is_there)
    if not available[name]:
        raise InputError(f"--device {name}: PyTorch finds none here; use --device cpu or auto.")
    return name


def load_model(args: argparse.Namespace) -> Model:
    device = pick_device(args.device)
    source = open_checkpoint(
        args.model, image_tokenizer_path=args.image_tokenizer, family=args.family
    )
    refuse_replacing(args, [("a file of the checkpoint", file) for file in source.files])
    refuse_replacing(args, [("an adapter that is read", adapter_file(f)) for f, _ in args.lora])
    note(args, f"loading {args.model} on {device}")
    dtype = None if args.dtype in (None, "auto") else getattr(torch, args.dtype)
    model = load_source(source, device=device, dtype=dtype)
    for file, strength in args.lora:
        state, metadata = read_adapter(file)
        build_adapter(model, state, metadata, str(file)).attach(model.transformer, strength)
        if doubt := doubt_about(model, metadata, str(file)):
            note(args, doubt)
    return model


def refuse_replacing(
    args: argparse.Namespace,
    read: Iterable[tuple[str, Path]],
    options: Sequence[str] = _WRITTEN,
) -> None:
    """Raise ``InputError`` where a file that one of ``options`` names, to be written, is one of
    those that are ``read``, each with what it is."""
    places = {file.resolve(): what for what, file in read}
    for option in options:
        file = getattr(args, option, None)
        if file and (what := places.get(file.resolve())):
            name = f"--{option.replace('_', '-')}"
            raise InputError(f"{name} is {file}, {what}, and would replace it.")


def check_settings(args: argparse.Namespace, seed: int) -> None:
    """Refuse values out of range before a model is loaded."""
    SamplerSettings(**given(args, options_of(SamplerSettings)), seed=seed)


def settings_of(
    args: argparse.Namespace, model: Model, seed: int, task: str = ""
) -> SamplerSettings:
    """The settings given, else those of the preset and of the family's ``task``."""
    chosen = given(args, options_of(SamplerSettings))
    if args.preset == "upstream":
        return SamplerSettings.upstream(model.variant, task=task, **chosen, seed=seed)
    own = {**chosen, "seed": seed}
    return SamplerSettings.of_profile("recommended", model.variant, task, model.config, **own)


@contextmanager
def memory_explained() -> Iterator[None]:
    """Turn running out of memory into one sentence."""
    try:
        yield
    except OutOfMemory:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            "There is too little free memory for this; use --dtype bfloat16, a smaller --size "
            "or another --device."
        ) from None


def note(args: argparse.Namespace, text: str) -> None:
    if not args.quiet:
        print(f"mmada-parallel: {text}", file=sys.stderr)

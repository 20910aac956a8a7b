"""``compare``: one instruction, answered with each adapter that a run has kept."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..mmp_core import InputError, Model, Prompt, SamplerSettings, decode_image, decode_text
from ..mmp_core.batching import denoise_in_batches
from ..mmp_core.checkpoint.adapters import build_adapter, read_adapter
from ..mmp_core.files import replacing, writable_file, writing
from ..mmp_core.image.files import read_original
from ..mmp_core.memory import decoding_bytes
from ..training.loop.keeping import named_adapters
from ..views.examples import Answer, answers_sheet
from .draw import encoded, task_of
from .model import (
    check_settings,
    load_model,
    memory_explained,
    refuse_replacing,
    settings_of,
)


def compare(args: argparse.Namespace) -> None:
    """Raises ``InputError`` with nothing written."""
    args.seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    check_settings(args, args.seed)
    out = writable_file(args.out or args.folder / "compared.png", "--out", (".png",))
    if args.image is not None:
        refuse_replacing(args, [("--image", args.image)])
    adapters = list(named_adapters(args.folder))
    if not adapters:
        raise InputError(
            f"{args.folder} holds no adapters of a run: give the folder of one that was trained "
            "with --keep-every, or with held-out or guard items."
        )
    picture = None if args.image is None else read_original(args.image)
    with memory_explained():
        model = load_model(args)
        settings = settings_of(args, model, args.seed, task_of(args, model))
        prompt = encoded(args, model, picture, None)
        if not min(prompt.initial.grid):
            raise InputError("compare draws pictures, and this task has none: choose another.")
        with tqdm(total=len(adapters) + 1, desc="answering", disable=args.quiet) as bar:
            answers = []
            for answer in _answers(model, prompt, settings, adapters):
                answers.append(answer)
                bar.update()
    with writing(out), replacing(out) as file:
        answers_sheet(answers, columns=4, side=192).save(file, "PNG")
    for answer in answers:
        print(f"{answer.instruction}: {answer.text.strip()}")
    print(f"{out}  (seed {args.seed})")


def _answers(
    model: Model, prompt: Prompt, settings: SamplerSettings, adapters: list[tuple[str, Path]]
) -> Iterator[Answer]:
    for name, file in [("no adapter", None), *adapters]:
        attached = None
        if file is not None:
            state, about = read_adapter(file)
            attached = build_adapter(model, state, about, str(file)).attach(model.transformer)
        size = decoding_bytes(model.image_tokenizer, prompt.initial.grid)
        final = denoise_in_batches(model, prompt, settings, record=0, picture=size).final
        if attached is not None:
            attached.remove()
        picture: Image.Image = decode_image(model, final)[0]
        yield Answer(name, decode_text(model, final)[0], picture)

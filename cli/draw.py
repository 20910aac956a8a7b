"""``edit``, ``generate`` and ``describe``: one picture and its text, or one of them."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..mmp_core import (
    InputError,
    Model,
    Prompt,
    SamplerSettings,
    decode_image,
    decode_text,
    encode_instruction,
    put_back,
)
from ..mmp_core.batching import chosen_in_batches, denoise_in_batches
from ..mmp_core.files import is_file, readable_size, replacing, writable_file, writing
from ..mmp_core.fitting import fitted_input, strange_note, unseen_note
from ..mmp_core.image.files import (
    load_image,
    load_mask,
    read_original,
    writable_picture,
    write_picture,
)
from ..mmp_core.image.mask_settings import MaskSettings
from ..mmp_core.image.put_back_settings import PutBackSettings
from ..mmp_core.instructions import instruction_notes
from ..mmp_core.memory import decoding_bytes, denoising_estimate, module_bytes
from ..mmp_core.options import options_of
from ..mmp_core.sampler.guidance import opposes
from ..mmp_core.sampler.settings import Target
from ..mmp_core.target import check_reducible
from . import many
from .drawing_options import put_back_options
from .model import (
    check_settings,
    load_model,
    memory_explained,
    note,
    refuse_replacing,
    settings_of,
)
from .options import given

_LONGEST_NAME = 48
_KEEPING = ("", "edit", "paint")
"""Tasks whose result is their picture with something changed."""


@dataclass(frozen=True)
class Answer:
    text: str
    image: Image.Image | None
    mask: Image.Image | None
    put_back: PutBackSettings | None
    steps: int
    seconds: float


def draw(args: argparse.Namespace) -> None:
    """Run ``edit``, ``generate`` or ``describe``. Raises ``InputError`` with nothing written."""
    if args.instruction is None:
        texts = [text for given in args.instructions for text in many.instructions_of(given)]
        if len(texts) != 1 or (args.image is not None and args.image.is_dir()):
            many.draw(args, texts)
            return
        args.instruction = texts[0]
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    check_options(args, seed)
    if not args.instruction.strip() and args.reference is None:
        raise InputError("The instruction is empty; say what to change or to show.")
    picture = None if args.image is None else read_original(_checked_image(args))
    mask = None if args.mask is None else load_mask(args.mask)
    _check_files(args)
    with memory_explained():
        make(args, load_model(args), picture, mask, seed)


def check_options(args: argparse.Namespace, seed: int) -> None:
    """Refuse options out of range before anything is read."""
    check_settings(args, seed)
    check_reducible(target_of(args), args.preset or "")
    if args.image is not None:
        mask_settings(args)
        put_back_settings(args, "")


def make(
    args: argparse.Namespace,
    model: Model,
    picture: Image.Image | None,
    mask: Image.Image | None,
    seed: int,
) -> None:
    """One answer: made, written and reported."""
    task = task_of(args, model)
    settings = settings_of(args, model, seed, task)
    answer = answered(args, model, picture, settings, mask)
    if args.text_out:
        with writing(args.text_out), replacing(args.text_out) as file:
            file.write_text(answer.text + "\n", encoding="utf-8")
    if answer.image is None:
        _report(args, answer, None, seed)
        return
    path = args.out or _free_path(args.instruction, seed)
    write_picture(path, answer.image, quality=args.quality, notes=_notes(answer, args, settings))
    if answer.put_back and path.suffix.lower() != ".png":
        note(args, f"{path} is encoded anew, which changes all pixels a little; a PNG keeps them.")
    if args.mask_out and answer.mask:
        write_picture(args.mask_out, answer.mask)
    _report(args, answer, path, seed)


def answered(
    args: argparse.Namespace,
    model: Model,
    picture: Image.Image | None,
    settings: SamplerSettings,
    mask: Image.Image | None = None,
) -> Answer:
    began = time.perf_counter()
    prompt = encoded(args, model, picture, mask)
    if prompt.negative is not None and not opposes(prompt, settings):
        note(args, "The negative instruction is not used, since guidance is off.")
    choice, target = None, target_of(args)
    if target:
        choice = chosen_in_batches(model, prompt, settings, target)
        settings = choice.settings
        note(args, f"for the target: {choice.described()}. {choice.expected()}")
    size = decoding_bytes(model.image_tokenizer, prompt.initial.grid)
    needed = denoising_estimate(model, prompt, settings, record=0, picture=size)
    weights = module_bytes(model.transformer)
    note(
        args,
        f"needs about {readable_size(needed.total(prompt.batch))} in addition to "
        f"{readable_size(weights)} of weights",
    )
    denoising = time.perf_counter()
    with tqdm(desc="denoising", unit="step", disable=args.quiet) as bar:

        def advance(index: int, total: int, step: object) -> None:
            bar.total = total
            bar.update()

        trajectory = denoise_in_batches(
            model, prompt, settings, callback=advance, record=0, picture=size
        )
    if choice:
        note(args, choice.took(trajectory.operations, time.perf_counter() - denoising))
    final, image, area = trajectory.final, None, None
    choices = put_back_settings(args, task_of(args, model)) if picture else None
    if choices and picture and min(final.grid):
        where = {"mask": mask, "mode": choices.mode, "settings": choices}
        image, area = put_back(model, prompt, picture, final, **where)
        share = (np.asarray(area) > 0).mean()
        note(
            args, f"put back: {share:.1%} of the pixels are replaced, the others are the original's"
        )
    elif min(final.grid):
        image = decode_image(model, final)[0]
    text, seconds = decode_text(model, final)[0].strip(), time.perf_counter() - began
    return Answer(text, image, area, choices, trajectory.total_steps, seconds)


def target_of(args: argparse.Namespace) -> Target:
    return Target(**given(args, options_of(Target)))


def put_back_settings(args: argparse.Namespace, task: str) -> PutBackSettings | None:
    """How the result is put back; None where the model's own picture is wanted."""
    mode = args.put_back
    if mode is None:
        own = args.size is not None or task not in _KEEPING
        mode = "off" if own and not args.mask_out else "changed"
    if mode == "off" and args.mask_out:
        raise InputError("--mask-out writes what is put back; leave --put-back off out.")
    if mode == "mask" and args.mask is None:
        raise InputError("--put-back mask needs a mask: give --mask.")
    names = {option.name: name for name, option in put_back_options().items() if name != "mode"}
    values = {names[name]: value for name, value in given(args, names).items()}
    settings = PutBackSettings(mode="changed" if mode == "off" else mode, **values)
    return None if mode == "off" else settings


def task_of(args: argparse.Namespace, model: Model) -> str:
    """The task that the family does for these pictures. Raises ``InputError`` for another's."""
    pictures = (args.image is not None) + (args.reference is not None)
    return model.variant.task_for(args.task, pictures)


def _checked_image(args: argparse.Namespace) -> Path:
    if not args.image.is_file() and is_file(Path(args.instruction)):
        raise InputError(
            f"The picture {args.image} is not there, and the instruction is the name of a file: "
            "give the picture first, then the instruction."
        )
    return args.image


def encoded(
    args: argparse.Namespace, model: Model, picture: Image.Image | None, mask: Image.Image | None
) -> Prompt:
    """The prompt, with a note about each thing that was fitted."""
    for text in instruction_notes(model, args.instruction, task_of(args, model)):
        note(args, text)
    choices = MaskSettings() if mask is None else mask_settings(args)
    size, masks = picture and picture.size, [] if mask is None else [mask]
    fitted = fitted_input(model, args.size or (0, 0), size, masks, settings=choices)
    for text in fitted.notes:
        note(args, text)
    prompt = encode_instruction(
        model,
        args.instruction,
        picture,
        size=fitted.size,
        text_length=args.text_length,
        mask=fitted.masks[0],
        coverage=choices.coverage,
        grow=choices.grow,
        region=fitted.regions[0],
        task=task_of(args, model) or None,
        reference=args.reference and load_image(args.reference),
        negative=args.negative,
    )
    notes = strange_note(model, prompt, [picture] if picture else [], fitted.regions)
    if any(fitted.masks):
        notes += unseen_note(prompt.initial, fitted.masks)
    for text in notes:
        note(args, text)
    return prompt


def mask_settings(args: argparse.Namespace) -> MaskSettings:
    """A result that is put back may be of the region around the mask."""
    chosen = given(args, options_of(MaskSettings))
    if args.put_back != "off":
        chosen.setdefault("region", "mask")
    return MaskSettings(**chosen)


def _check_files(args: argparse.Namespace) -> None:
    """Refuse, before the work, files that could not be written after it."""
    writable_picture(args.out or Path("picture.png"), "--out", args.quality)
    if args.text_out:
        writable_file(args.text_out, "--text-out")
    if args.mask_out:
        writable_file(args.mask_out, "--mask-out", (".png",))
    refuse_replacing(args, _inputs(args))
    if args.image:
        refuse_replacing(args, [("the picture", args.image)], ("text_out", "mask_out"))
    taken: dict[Path, str] = {}
    for option in ("out", "text_out", "mask_out"):
        if file := getattr(args, option):
            name = f"--{option.replace('_', '-')}"
            other = taken.setdefault(file.resolve(), name)
            if other != name:
                raise InputError(f"{other} and {name} are both {file}: give each its own file.")


def _inputs(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """Files that are read beside the picture, which may be replaced, and the checkpoint."""
    named = [("--mask", args.mask), ("--reference", args.reference)]
    named += [("the file of instructions", many.list_file(text)) for text in args.instructions]
    return [(name, file) for name, file in named if file]


def _free_path(instruction: str, seed: int) -> Path:
    name, number = f"{slug(instruction)}_{seed}", 2
    path = Path(f"{name}.png")
    while path.exists():
        path, number = Path(f"{name}_{number}.png"), number + 1
    return path


def slug(instruction: str) -> str:
    """The beginning of an instruction as a part of a file's name."""
    return re.sub(r"\W+", "-", instruction.lower())[:_LONGEST_NAME].strip("-") or "picture"


def _notes(answer: Answer, args: argparse.Namespace, settings: SamplerSettings) -> dict[str, str]:
    """How the picture was made, for its file."""
    notes = {
        "instruction": args.instruction,
        **({"negative": args.negative} if args.negative else {}),
        "text": answer.text,
        "seed": str(settings.seed),
        "model": Path(args.model).name,
        "settings": json.dumps(asdict(settings)),
    }
    if answer.put_back:
        notes["put_back"] = json.dumps(asdict(answer.put_back))
    if args.lora:
        notes["loras"] = json.dumps([f"{file.name}:{strength:g}" for file, strength in args.lora])
    return notes


def _report(args: argparse.Namespace, answer: Answer, path: Path | None, seed: int) -> None:
    seconds = round(answer.seconds, 3)
    if args.json:
        image = path and str(path.absolute())
        values = dict(text=answer.text, image=image, seed=seed, steps=answer.steps, seconds=seconds)
        print(json.dumps(values))
        return
    if answer.text:
        print(answer.text)
    if path:
        print(f"{path}  (seed {seed}, {answer.steps} steps, {seconds:.1f} s)")

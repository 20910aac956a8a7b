"""The options of the commands but ``train`` and those that draw. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any

from ..mmp_core.errors import InputError, shown
from ..mmp_core.files import checked_path
from ..mmp_core.model.formats import FORMATS
from ..mmp_core.options import Option, options_of, plain
from ..mmp_core.sampler.settings import SamplerSettings

_MOST = 1_000_000
"""Of anything that is counted: more would not fit into memory."""
_METAVARS = {int: "N", float: "X", str: "TEXT"}


def add_settings(parser: argparse._ActionsContainer, options: Iterable[Option]) -> None:
    """An argument for each option; None where it is not given, so that a preset may decide."""
    for option in options:
        if option.kind is bool:
            details: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        elif option.choices:
            details = {"choices": option.choices}
        else:
            details = {"type": option.kind, "metavar": _METAVARS[option.kind]}
        parser.add_argument(f"--{option.name.replace('_', '-')}", help=_help(option), **details)


def _help(option: Option) -> str:
    text, default = option.help.rstrip("."), option.default
    if not text.startswith(option.choices or "\0") and not re.match(r"\w+[A-Z]", text):
        text = text[0].lower() + text[1:]
    if isinstance(default, bool):
        default = "on" if default else "off"
    elif isinstance(default, float):
        default = plain(default)
    text = text if default in (None, "") else f"{text} (default {default})"
    return text.replace("%", "%%")


def given(args: argparse.Namespace, options: Iterable[str]) -> dict[str, Any]:
    """The values of the options that were given, by name."""
    return {name: value for name in options if (value := getattr(args, name)) is not None}


def add_comparison(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=path,
        metavar="RUN",
        help="the folder of a training run that saved adapters (with --keep-every, or held-out "
        "items)",
    )
    parser.add_argument("instruction", metavar="INSTRUCTION", help="the change, or the picture")
    parser.add_argument("--image", type=path, metavar="FILE", help="the picture to edit")
    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE.png",
        help="file to write the sheet to (default: compared.png in RUN)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="seed of all results (default: a random seed, which is printed)",
    )
    unused = ("mask", "reference", "size", "text_length", "task")
    parser.set_defaults(**dict.fromkeys(unused), negative="")
    add_model(parser)
    add_sampler(parser)


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cases", type=positive, default=500, metavar="N", help="number of tasks (default 500)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="task i uses seed N + i (default 0)"
    )
    parser.add_argument(
        "--repeats",
        type=positive,
        default=1,
        metavar="N",
        help="number of results of each task, with different seeds, printed separately (default 1)",
    )
    parser.add_argument(
        "--clip",
        type=place,
        metavar="demo|FOLDER",
        help="also compute the similarity of text and picture with this CLIP (open_clip's format; "
        "needs open_clip_torch)",
    )
    parser.add_argument(
        "--batch", type=positive, default=16, metavar="N", help="tasks in a batch (default 16)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model(parser)
    add_sampler(parser)


def add_conversion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=place,
        metavar="SRC",
        help="the folder of a checkpoint in the released layout, or demo",
    )
    parser.add_argument(
        "out",
        metavar="OUT.safetensors",
        type=path,
        help="the file to write. An existing file is replaced once the new one is complete",
    )
    parser.add_argument(
        "--quantize",
        choices=(*FORMATS, "none"),
        default="none",
        help="format of the linear layers of the blocks: fp8 or int8 with one byte per weight, "
        "nvfp4 with 4.5 bits, none as stored (default none)",
    )
    _add_lora(
        parser,
        "an adapter to merge into the weights before they are quantised: a .safetensors file",
    )
    _add_image_tokenizer(parser)
    add_quiet(parser)


def add_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "family",
        metavar="A|M|D|8B",
        help="the checkpoint: MMaDA-Parallel-A or -M, D for Lumina-DiMOO, 8B for MMaDA-8B-MixCoT",
    )
    parser.add_argument(
        "--quantize",
        choices=tuple(FORMATS),
        help="make one file whose linear layers of the blocks take one byte per weight, or with "
        "nvfp4 4.5 bits (default: keep the folder as released, 17 GB)",
    )
    parser.add_argument(
        "--into",
        type=path,
        metavar="FOLDER",
        help="folder to download to (default: models/mmada_parallel of the ComfyUI that contains "
        "this pack or the current folder, or of ~/ComfyUI or ~/comfy/ComfyUI; otherwise the "
        "current folder)",
    )
    add_quiet(parser)


def add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=place,
        nargs="?",
        metavar="PATH",
        help="the folder of a checkpoint, or a file that convert wrote. Without PATH the command "
        "lists what is installed on this machine",
    )
    _add_image_tokenizer(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=place,
        default="demo",
        metavar="demo|picture-book|PATH",
        help="the folder of a checkpoint in the released layout, a file that convert wrote, or "
        "one of the small models that come with the package: demo, which edits plain shapes, or "
        "picture-book, which edits little scenes (default demo)",
    )
    _add_lora(group, "an adapter to apply: a .safetensors file")
    _add_image_tokenizer(group)
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="device to compute on (default auto: a GPU if there is one)",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16", "int8"),
        help="precision of the transformer (default auto: as stored, but float32 for small models "
        "on a CPU; int8: as auto, but layers of a checkpoint converted to int8 are multiplied as "
        "int8, which is faster and slightly less accurate)",
    )


def _add_lora(parser: argparse._ActionsContainer, what: str) -> None:
    parser.add_argument(
        "--lora",
        type=_lora,
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help=f"{what} or a folder of PEFT. STRENGTH multiplies its effect (default 1, as trained). "
        "Repeat the option for several adapters",
    )


def _add_image_tokenizer(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--image-tokenizer",
        type=path,
        metavar="PATH",
        help="file or folder of the image tokenizer, if it is neither in the checkpoint's folder "
        "nor next to it (variant M and MMaDA-8B: that of showlab/magvitv2)",
    )
    parser.add_argument(
        "--family",
        help="the family of the checkpoint, if it cannot be recognised from the files: A or M for "
        "MMaDA-Parallel, D for Lumina-DiMOO, 8B for MMaDA-8B",
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quiet", action="store_true", help="print no progress or notes to standard error"
    )


def add_sampler(parser: argparse.ArgumentParser) -> None:
    add_quiet(parser)
    group = parser.add_argument_group("sampler", "The upstream preset has its own defaults.")
    add_settings(group, options_of(SamplerSettings).values())


def path(text: str) -> Path:
    """A name that the file system can hold; the commands say what must be there."""
    try:
        return checked_path(text, "the name")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def place(text: str) -> str:
    """The same, which may also be the name of something that comes with the package."""
    path(text)
    return text


def _lora(text: str) -> tuple[Path, float]:
    file, _, strength = text.rpartition(":")
    if file and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", strength):
        if not isfinite(value := float(strength)):
            raise argparse.ArgumentTypeError(f"the strength of {file} is too large a number")
        return path(file), value
    return path(text), 1.0


def positive(text: str) -> int:
    if not re.fullmatch(r"\d{1,7}", text) or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number from 1 to {_MOST}")
    return int(text)

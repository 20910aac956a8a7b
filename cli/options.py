"""The options of the commands but ``train``. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..mmp_core.errors import InputError
from ..mmp_core.files import checked_path
from ..mmp_core.image.mask_settings import MaskSettings
from ..mmp_core.image.put_back_settings import PutBackSettings
from ..mmp_core.model.formats import FORMATS
from ..mmp_core.options import Option, options_of, plain
from ..mmp_core.sampler.settings import SamplerSettings, Target

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


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """Instruction and options of ``edit`` and ``generate``."""
    parser.add_argument(
        "instructions",
        metavar="INSTRUCTION",
        nargs="+",
        help="the change to make, or the picture to draw. With several instructions, or @FILE with "
        "one on each line, the command makes one picture for each",
    )
    parser.add_argument(
        "--negative",
        default="",
        metavar="INSTRUCTION",
        help="guidance moves the picture away from this instruction. Needs a guidance other than "
        "0, and a task whose instruction the model reads",
    )
    parser.set_defaults(instruction=None)
    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help="file to write: PNG, JPEG or WebP by its extension. An existing file is replaced "
        "(default: INSTRUCTION_SEED.png in the current folder, with a counter if it already "
        "exists). With several pictures, folder to write to, in which existing pictures are not "
        "made again",
    )
    parser.add_argument(
        "--quality",
        type=_percent,
        metavar="N",
        help="quality of JPEG and WebP, from 1 to 100 (default 95)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="size of the result in pixels, rounded to whole image tokens. With Wx or xH alone the "
        "other side is computed from the proportions (default: the size at which the model sees "
        "the input picture; without one, the checkpoint's default size)",
    )
    add_answer(parser)


def add_description(parser: argparse.ArgumentParser) -> None:
    """Picture, question and options of ``describe``, which has none of a picture that is drawn."""
    parser.add_argument("image", metavar="IMAGE", type=path, help="the picture to describe")
    parser.add_argument(
        "instruction",
        metavar="QUESTION",
        nargs="?",
        default="Describe the picture.",
        help='the question or request (default "Describe the picture.")',
    )
    unused = ("out", "quality", "size", "mask", "reference", "put_back", "mask_out")
    names = (option.name for option in put_back_options().values())
    unused = (*unused, *options_of(MaskSettings), *names)
    parser.set_defaults(task="describe", negative="", **dict.fromkeys(unused))
    add_answer(parser)


def add_answer(parser: argparse.ArgumentParser) -> None:
    """Options of all that answers."""
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="seed of the random numbers. The same seed gives the same result (default: a random "
        "seed, which is printed; 0 for several pictures)",
    )
    parser.add_argument(
        "--text-out", type=path, metavar="FILE.txt", help="also write the text to this file"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object with text, image (path), seed, steps and seconds (of encoding, "
        "denoising and decoding, without loading the model)",
    )
    parser.add_argument(
        "--text-length",
        type=int,
        metavar="N",
        help="tokens that the text may have (default: the checkpoint's own)",
    )
    add_model(parser)
    _add_sampler(parser)
    group = parser.add_argument_group("target", "What is reduced to meet it is said.")
    add_settings(group, options_of(Target).values())


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """What ``edit`` does with its pictures."""
    parser.add_argument(
        "--task",
        help="one of the tasks that the family of the checkpoint was trained on (Lumina-DiMOO: "
        "edit, subject, control, dense_prediction, multi_view, style, paint; MMaDA-8B: paint; "
        "default edit, or style with --reference)",
    )
    parser.add_argument(
        "--reference",
        type=path,
        metavar="FILE",
        help="a second picture, whose style is transferred to IMAGE. INSTRUCTION may then be empty",
    )


def add_mask(parser: argparse.ArgumentParser) -> None:
    """The mask of ``edit``."""
    group = parser.add_argument_group("mask")
    group.add_argument(
        "--mask",
        type=path,
        metavar="FILE",
        help="redraw only a part: a picture that is white where IMAGE may change and black "
        "elsewhere, stretched to the size of IMAGE",
    )
    options = options_of(MaskSettings)
    help = f"{options['region'].help} Default: mask, but whole with --put-back off."
    options["region"] = replace(options["region"], help=help, default=None)
    add_settings(group, options.values())


def add_put_back(parser: argparse.ArgumentParser) -> None:
    """How the result of ``edit`` comes back on the original."""
    group = parser.add_argument_group(
        "put back",
        "The edited picture has the original's size, alpha, colour profile and 16-bit grey.\n"
        "Pixels outside the edit are unchanged, but JPEG and WebP encode all of them again:\n"
        "write PNG to keep them exactly.",
    )
    options = put_back_options()
    mode = options["mode"]
    help = f"{mode.help} off: the model's own picture, as with --size"
    options["mode"] = replace(mode, choices=(*mode.choices, "off"), help=help, name="put_back")
    add_settings(group, options.values())
    group.add_argument(
        "--mask-out",
        type=path,
        metavar="FILE.png",
        help="also write the mask of the replaced pixels: 8 bits, the original's size, 0 where the "
        "original is unchanged",
    )


def put_back_options() -> dict[str, Option]:
    """The options of put back, named as on the command line, by the name of their field."""
    options = options_of(PutBackSettings)
    return {n: replace(option, name=f"put_back_{n}") for n, option in options.items()}


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
    _add_sampler(parser)


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
    _add_sampler(parser)


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
        metavar="demo|PATH",
        help="the folder of a checkpoint in the released layout, a file that convert wrote, or "
        "demo, a small model of a toy world that comes with the package (default demo)",
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
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision of the transformer (default auto: as stored, but float32 for small models "
        "on a CPU)",
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


def _add_sampler(parser: argparse.ArgumentParser) -> None:
    add_quiet(parser)
    group = parser.add_argument_group("sampler", "The upstream preset has its own defaults.")
    add_settings(group, options_of(SamplerSettings).values())


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})?[xX×]([1-9]\d{0,4})?", text)
    if not match or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected WxH, such as 512x512")
    return int(match[1] or 0), int(match[2] or 0)


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
        return path(file), float(strength)
    return path(text), 1.0


def _percent(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text) or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100")
    return int(text)


def positive(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)

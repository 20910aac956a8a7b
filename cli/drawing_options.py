"""The options of ``edit``, ``generate`` and ``describe``. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace

from ..mmp_core.image.mask_settings import MaskSettings
from ..mmp_core.image.put_back_settings import PutBackSettings
from ..mmp_core.options import Option, options_of
from ..mmp_core.sampler.settings import Target
from .options import add_model, add_sampler, add_settings, path


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
    parser.set_defaults(task="describe", negative="", instructions=(), **dict.fromkeys(unused))
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
    add_sampler(parser)
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


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})?[xX×]([1-9]\d{0,4})?", text)
    if not match or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected WxH, such as 512x512")
    return int(match[1] or 0), int(match[2] or 0)


def _percent(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text) or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100")
    return int(text)

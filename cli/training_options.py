"""The options of ``train``. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import replace

from ..mmp_core.options import Option, options_of
from ..training.data.registry import GENERATED
from ..training.data.settings import DataSettings
from ..training.dpo.settings import DPOSettings
from ..training.loop.settings import RunSettings
from ..training.pararl.settings import ROLLOUT_SAMPLER, ROLLOUTS, ParaRLSettings
from ..training.rewards.registry import REWARDS
from ..training.sft.settings import SFTSettings
from ..training.weights.settings import AdapterSettings
from .options import add_model, add_quiet, add_settings, path, place, positive


def add_pararl(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=path,
        required=True,
        metavar="FILE.safetensors",
        help="where the trained adapter goes; an existing file is replaced",
    )
    kinds = "; or ".join(f"{kind.usage}, {kind.help}" for kind in REWARDS.values())
    parser.add_argument(
        "--reward",
        action="append",
        metavar="NAME[:PLACE][=WEIGHT]",
        help=f"what to train for: {kinds}; repeat it for a weighted sum (default for --data demo: "
        "checker)",
    )
    _add_dataset(parser, "demo", unused=("outside_weight",))
    add_settings(parser.add_argument_group("ParaRL"), _own(ParaRLSettings))
    options = options_of(ROLLOUT_SAMPLER)
    add_settings(parser.add_argument_group("rollouts"), [options[name] for name in ROLLOUTS])
    _add_run(parser)
    add_model(parser)


def add_run_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=path, metavar="FILE.toml", help="the run file")
    parser.add_argument(
        "more",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="options of its method that replace those of the file, such as --resume",
    )


def add_sft(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, _own(SFTSettings))
    group = parser.add_argument_group(
        "from nothing, without --data",
        "Defaults are then 3000 steps of 128 items (on a GPU 2048), muon, and a learning rate of\n"
        "8e-4 that falls over the last third.",
    )
    group.add_argument(
        "--folder",
        type=path,
        metavar="FOLDER",
        help="where the run is kept, and FOLDER/checkpoint is written (default build/sft)",
    )
    _add_dataset(parser, None)
    parser.add_argument(
        "--output",
        type=path,
        metavar="FILE.safetensors",
        help="with --data: where the trained adapter goes; an existing file is replaced",
    )
    _add_run(parser)
    add_model(parser)


def add_dpo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=place,
        action="append",
        required=True,
        metavar="FOLDER[=REPEATS]",
        help="a folder of picks, as the node Pick Sample writes them to "
        "output/mmada_parallel/preferences; repeat it for several, each used REPEATS times",
    )
    parser.add_argument(
        "--output",
        type=path,
        required=True,
        metavar="FILE.safetensors",
        help="where the trained adapter goes; an existing file is replaced",
    )
    add_settings(parser.add_argument_group("DPO"), _own(DPOSettings))
    group = parser.add_argument_group(
        "watching", "Instructions and pictures in any form that train sft takes; never trained on."
    )
    _add_guard_and_samples(group)
    group.add_argument(
        "--text-length",
        type=positive,
        metavar="N",
        help="tokens that their texts may have (default: the checkpoint's own)",
    )
    parser.set_defaults(held_out_data=None, **dict.fromkeys(options_of(DataSettings)))
    _add_run(parser)
    add_model(parser)


def _add_dataset(
    parser: argparse.ArgumentParser, default: str | None, unused: Collection[str] = ()
) -> None:
    """``unused``: options that the method takes, as run files hold them, and does nothing with."""
    otherwise = f" (default {default})" if default else ""
    generated = ", ".join(f"or {each.name}: {each.help}" for each in GENERATED.values())
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        type=place,
        action="append",
        metavar="demo|PATH[=REPEATS]",
        help="a folder of pictures and instructions (name.png and name.txt; for SFT also "
        "name.think.txt and name.target.png), a .jsonl manifest, a dataset that Hugging Face's "
        f"datasets saved, files of parquet, {generated}{otherwise}; repeat it for several, each "
        "used REPEATS times",
    )
    options = options_of(DataSettings)
    add_settings(group, (option for name, option in options.items() if name not in unused))
    for name in unused:
        kind = options[name].kind
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=argparse.SUPPRESS)
    group.add_argument(
        "--cases",
        type=positive,
        metavar="N",
        help="use only this many, from the first (default all; of the toy world 1000)",
    )
    group.add_argument(
        "--bad-items",
        choices=("skip", "fail"),
        help="what to do with items that cannot be used: leave them out and name them, or fail "
        "(default skip)",
    )
    group.add_argument(
        "--text-length",
        type=positive,
        metavar="N",
        help="tokens that the text may have (default: the checkpoint's own)",
    )
    group = parser.add_argument_group(
        "watching", "More data, in any form of --data, that is never trained on."
    )
    group.add_argument(
        "--held-out-data",
        type=place,
        metavar="PATH",
        help="items like those of --data whose loss (of pararl: whose reward) is measured now and "
        "then; --held-out takes a share of --data instead",
    )
    _add_guard_and_samples(group)


def _add_guard_and_samples(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--guard",
        type=place,
        metavar="none|PATH",
        help="items that the model knew before, whose loss should not rise (default: those that "
        "come with the checkpoint, in its folder guard)",
    )
    group.add_argument(
        "--samples",
        type=place,
        metavar="PATH",
        help="instructions, with or without pictures, that are answered now and then, always with "
        "the same seed, into the folder samples of the run; the first 8",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("adapter")
    add_settings(group, options_of(AdapterSettings).values())
    group.add_argument(
        "--existing-lora",
        type=path,
        metavar="FILE",
        help="an adapter to train further; rank and layers are then those of the file",
    )
    group.add_argument(
        "--full",
        action="store_true",
        help="train all weights instead, of a model that is small and not quantised; the result "
        "is a whole checkpoint, for --model",
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--run-folder",
        type=path,
        metavar="FOLDER",
        help="where state and log of the run are kept (default: the output's name without "
        ".safetensors, and -run)",
    )
    group.add_argument("--resume", action="store_true", help="continue the run that is kept there")
    options = options_of(RunSettings)
    micro_batch = options["micro_batch"]
    text = f"{micro_batch.help} By default {micro_batch.default}, or as many as fit on a GPU."
    options["micro_batch"] = replace(micro_batch, default=None, help=text)
    add_settings(group, options.values())
    add_quiet(parser)


def _own(settings: type[RunSettings]) -> list[Option]:
    """The options that other kinds of runs do not have."""
    shared = options_of(RunSettings)
    return [option for name, option in options_of(settings).items() if name not in shared]

"""The options of ``train``, and what they mean for a run. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_model, positive

_STEPPING = (
    ("warmup_steps", int, "N", "steps over which the learning rate rises (default 10)"),
    ("weight_decay", float, "X", "of AdamW (default 0)"),
    ("clip_norm", float, "X", "most that the gradient's norm may be (default 1)"),
    (
        "micro_batch",
        int,
        "N",
        "sequences at a time: memory and speed alone (default 8, or as many as fit on a GPU)",
    ),
    ("checkpoint_every", int, "N", "steps between saved states (default 50)"),
)
_PARARL = (
    ("groups", int, "N", "prompts per step (default 4)"),
    ("group_size", int, "N", "rollouts of each prompt, which are compared (default 8)"),
    ("scored_steps", int, "N", "denoising steps of each rollout that are scored (default 3)"),
    ("inner_epochs", int, "N", "updates per rollout (default 1)"),
    ("clip", float, "X", "how far one step may change a probability, as a share (default 0.2)"),
    ("kl", float, "X", "weight of the divergence from the reference (default 0.0001)"),
)
_ROLLOUTS = (
    ("text_steps", int, "N", "steps that decide text (default 32)"),
    ("image_steps", int, "N", "steps that decide the picture (default 16)"),
    ("text_temperature", float, "X", "variety of the text (default 1)"),
    ("image_temperature", float, "X", "variety of the picture (default 1)"),
    ("joint_guidance", float, "X", "guidance of the picture (default off)"),
)


def add_pararl(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="where the trained adapter goes; an existing file is replaced",
    )
    parser.add_argument(
        "--reward",
        action="append",
        metavar="NAME[:PLACE][=WEIGHT]",
        help="what to train for: clip:FOLDER, how well text and picture agree by the CLIP in "
        "FOLDER (open_clip's format; clip:demo knows the toy world), or checker, the toy world's "
        "exact judge; repeat it for a weighted sum (default for --data demo: checker)",
    )
    parser.add_argument(
        "--steps", type=positive, default=200, metavar="N", help="in all (default 200)"
    )
    parser.add_argument(
        "--learning-rate", type=float, metavar="X", help="after its rise (default 5e-05)"
    )
    add_dataset(parser, "demo")
    group = parser.add_argument_group("ParaRL")
    _add(group, _PARARL)
    group.add_argument(
        "--reward-at",
        choices=("trajectory", "output"),
        help="score half-done pairs along the way, or the final one alone (default trajectory)",
    )
    group.add_argument(
        "--kl-reference",
        choices=("base", "old"),
        help="hold to the model before training, or before the step (default base)",
    )
    _add(parser.add_argument_group("rollouts"), _ROLLOUTS)
    add_run(parser)
    add_model(parser)


def add_sft(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="in all (default 3000; with --data 200)"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="examples per step (default 128, on a GPU 2048; with --data 8)",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="X",
        help="before it falls (default 8e-4; with --data 5e-5)",
    )
    group = parser.add_argument_group("from nothing, without --data")
    group.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="where the run is kept, and FOLDER/checkpoint is written (default build/sft)",
    )
    group.add_argument(
        "--decay-steps",
        type=positive,
        metavar="N",
        help="steps over which the learning rate falls to 0 at the end (default: a third)",
    )
    add_dataset(parser, None)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.safetensors",
        help="with --data: where the trained adapter goes; an existing file is replaced",
    )
    add_run(parser)
    add_model(parser)


def add_dataset(parser: argparse.ArgumentParser, default: str | None) -> None:
    otherwise = f" (default {default})" if default else ""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        default=default,
        metavar="demo|PATH",
        help="a folder of pictures and instructions (name.png and name.txt; for SFT also "
        "name.think.txt and name.target.png), a .jsonl manifest, a dataset that Hugging Face's "
        f"datasets saved, or demo: the toy world{otherwise}",
    )
    group.add_argument(
        "--cases",
        type=positive,
        metavar="N",
        help="use so many (default all; of the toy world 1000)",
    )
    group.add_argument(
        "--bad-items",
        choices=("skip", "fail"),
        default="skip",
        help="what becomes of items that cannot be used: left out and named, or fatal (default "
        "skip)",
    )
    group.add_argument(
        "--text-length",
        type=positive,
        metavar="N",
        help="tokens that the text may have (default: the checkpoint's own)",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("adapter")
    group.add_argument(
        "--rank", type=positive, default=16, metavar="N", help="of the adapter (default 16)"
    )
    group.add_argument(
        "--layers",
        choices=("all", "attention", "mlp"),
        default="all",
        help="which linear layers of the blocks get one (default all)",
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
        type=Path,
        metavar="FOLDER",
        help="where state and log of the run are kept (default: the output's name without "
        ".safetensors, and -run)",
    )
    group.add_argument("--resume", action="store_true", help="continue the run that is kept there")
    group.add_argument("--seed", type=int, metavar="N", help="of all that is random (default 0)")
    _add(group, _STEPPING)
    group.add_argument(
        "--schedule",
        choices=("constant", "linear"),
        help="hold the learning rate, or let it fall to 0 at the end (default constant)",
    )
    group.add_argument(
        "--no-gradient-checkpointing",
        dest="gradient_checkpointing",
        action="store_const",
        const=False,
        help="keep the blocks' activations: faster, and much more memory",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress or notes on standard error"
    )


def _add(parser: argparse._ActionsContainer, options: tuple) -> None:
    for name, kind, metavar, brief in options:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=brief)


def chosen_stepping(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``RunSettings`` that were given; the others have their defaults."""
    names = ["steps", "learning_rate", "seed", "schedule", "gradient_checkpointing"]
    return _given(args, names + [name for name, *_ in _STEPPING])


def chosen_pararl(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``ParaRLSettings`` alone that were given."""
    return _given(args, ["reward_at", "kl_reference"] + [name for name, *_ in _PARARL])


def chosen_rollouts(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the rollouts' ``SamplerSettings`` that were given."""
    return _given(args, [name for name, *_ in _ROLLOUTS])


def _given(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(args, name)) is not None}

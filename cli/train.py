"""``train``: by rewards, on targets, or the toy world's model from nothing."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..mmp_core import InputError, Model
from ..mmp_core.checkpoint.adapters import adapter_file, check_variant, doubt_about
from ..mmp_core.checkpoint.load import open_checkpoint
from ..mmp_core.checkpoint.source import Source
from ..mmp_core.files import check_utf8, checked_path, readable_size, writable_file
from ..mmp_core.memory import free_bytes
from ..mmp_core.model.config import LAYER_SETS
from ..mmp_core.options import options_of
from ..training.cases import Case
from ..training.data.registry import GENERATED
from ..training.data.settings import DataSettings
from ..training.dpo.preferences import open_preferences
from ..training.dpo.run import DPORun
from ..training.dpo.settings import DPOSettings
from ..training.loop.memory import dpo_bytes, pararl_bytes, sft_bytes, trained_parameters
from ..training.loop.ranks import AcceleratedRanks, Ranks, launched_ranks
from ..training.loop.run import TrainingRun, Waiting
from ..training.loop.run_file import NAME, write_run_file
from ..training.loop.settings import RunSettings
from ..training.pararl.run import ParaRLRun
from ..training.pararl.settings import ROLLOUT_SAMPLER, ROLLOUTS, ParaRLSettings
from ..training.rewards.clip import ClipScorer, clip_folder
from ..training.rewards.registry import weighted_reward
from ..training.sft.run import SFTRun
from ..training.sft.settings import SFTSettings
from ..training.weights.adapter_files import base_metadata, read_adapter, save_adapter
from ..training.weights.checkpoint_files import check_source, save_whole
from ..training.weights.offload import offload, streamed_bytes
from ..training.weights.policies import FullWeights, LoRA, Policy, is_dora, rank_and_layers
from ..training.weights.settings import AdapterSettings
from ..training.weights.sharded import ShardedWeights
from .model import load_model, memory_explained, note, pick_device, refuse_replacing
from .options import given
from .training_data import (
    cases_from,
    data_settings,
    dataset_of,
    place_and_repeats,
    placed,
    run_folder,
    watched_cases,
)
from .votes import say_where_to_vote

Save = Callable[[Mapping[str, Tensor]], Path]
"""Writes trained weights; where they are."""

_MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
_SHARE = 0.9
"""Of a GPU's free memory, that may be counted on."""
_FROM_NOTHING_FOLDER, _FROM_NOTHING_STEPS = Path("build/sft"), 3000
_OF_DATA = ("output", "cases", "bad_items", "text_length", "run_folder")
_OF_DATA += tuple(options_of(DataSettings))
_OF_DATA += ("held_out_data", "guard", "samples", "held_out", "keep_every")
_OF_ADAPTERS = (
    "full",
    "rank",
    "rslora",
    "dora",
    "layers",
    "lora",
    "existing_lora",
    "image_tokenizer",
    "dtype",
)


def pararl(args: argparse.Namespace) -> None:
    settings = ParaRLSettings(
        **given(args, options_of(ParaRLSettings)),
        sampler=replace(ROLLOUT_SAMPLER, **given(args, ROLLOUTS)),
    )
    _check_places(args)
    args.data = args.data or ["demo"]
    if not args.reward:
        place, _ = place_and_repeats(args.data[0])
        if place not in GENERATED:
            raise InputError("--reward: say what to train for, such as clip:FOLDER.")
        args.reward = [GENERATED[place].reward]
    dataset = dataset_of(args)
    device = pick_device(args.device)

    def scorer(place: str) -> ClipScorer:
        folder = clip_folder(place)
        refuse_replacing(args, [("a file of the CLIP", file) for file in folder.glob("*")])
        return ClipScorer(folder, device=device)

    reward = weighted_reward(args.reward, scorer, dataset)
    with memory_explained():
        cases = partial(cases_from, args, dataset, need_target=False)
        parts = _prepared(args, cases, settings, pararl_bytes, need_target=False)
        run = ParaRLRun(reward=reward, **parts)
        rollouts = {name: getattr(settings.sampler, name) for name in ROLLOUTS}
        _train(args, run, ("reward_mean", "kl"), partial(_save, args, run), rollouts)


def sft(args: argparse.Namespace) -> None:
    if args.data is None:
        _sft_from_nothing(args)
        return
    if args.folder:
        raise InputError(
            "--folder is for training from nothing, without --data; with it there is --run-folder."
        )
    if args.output is None:
        raise InputError("--data needs --output FILE.safetensors: where the adapter goes.")
    settings = SFTSettings(**given(args, options_of(SFTSettings)))
    _check_places(args)
    dataset = dataset_of(args)
    with memory_explained():
        cases = partial(cases_from, args, dataset, need_target=True)
        run = SFTRun(**_prepared(args, cases, settings, sft_bytes, need_target=True))
        _train(args, run, ("text_loss", "image_loss"), partial(_save, args, run))


def dpo(args: argparse.Namespace) -> None:
    settings = DPOSettings(**given(args, options_of(DPOSettings)))
    _check_places(args)
    sources = [
        (open_preferences(place), times) for place, times in map(place_and_repeats, args.data)
    ]
    refuse_replacing(args, [("a pick", file) for picks, _ in sources for file in picks.files])

    def cases(model: Model) -> list[Case]:
        read = [case for picks, times in sources for case in picks.cases(model) * times]
        picks = sum(len(picks.files) for picks, _ in sources)
        note(args, f"{picks} picks, {len(read)} comparisons.")
        return read

    with memory_explained():
        run = DPORun(**_prepared(args, cases, settings, dpo_bytes, need_target=True))
        _train(args, run, ("loss", "preferred"), partial(_save, args, run))


def _sft_from_nothing(args: argparse.Namespace) -> None:
    names = [name for name in (*_OF_DATA, *_OF_ADAPTERS) if getattr(args, name)]
    if names or args.model != "demo":
        option = (names or ["model"])[0].replace("_", "-")
        raise InputError(f"--{option} needs --data: without it the toy world's model is trained.")
    world = GENERATED["demo"]
    device, folder = pick_device(args.device), args.folder or _FROM_NOTHING_FOLDER
    options = {"steps": _FROM_NOTHING_STEPS} | given(args, options_of(SFTSettings))
    falls = options.get("schedule") != "constant"
    decay = {"decay_steps": max(1, options["steps"] // 3) if falls else 0}
    settings = replace(world.recipe(device), **(decay | options))
    _check_run_folder(args, folder, "--folder")
    with memory_explained():
        run = world.from_nothing(folder, settings, device, _ranks(args))
        out = folder / "checkpoint"
        _train(args, run, ("text_loss", "image_loss"), partial(world.write_checkpoint, run, out))


def _check_places(args: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what cannot be written or resumed."""
    writable_file(args.output, "--output", (".safetensors",))
    if args.existing_lora:
        refuse_replacing(args, [("--existing-lora", adapter_file(args.existing_lora))])
    if args.full:
        check_source(_source(args))
    _check_run_folder(args, run_folder(args), "--run-folder")


def _source(args: argparse.Namespace) -> Source:
    return open_checkpoint(
        args.model, image_tokenizer_path=args.image_tokenizer, family=args.family
    )


def _check_run_folder(args: argparse.Namespace, folder: Path, option: str) -> None:
    check_utf8(checked_path(folder, option), option)
    begun = (folder / "run.pt").exists()
    if begun and not args.resume:
        raise InputError(
            f"{folder} holds a run: --resume continues it, {option} keeps another elsewhere."
        )
    if args.resume and not begun:
        raise InputError(f"{folder} holds no run to resume.")
    writable_file(folder / "run.pt", option)


def _prepared(
    args: argparse.Namespace,
    cases_for: Callable[[Model], Sequence[Case]],
    settings: RunSettings,
    bytes_of: Callable[..., int],
    *,
    need_target: bool,
) -> dict[str, Any]:
    """What every run is made of."""
    ranks, model = _ranks(args), _loaded(args, settings)
    _check_existing(args, model)
    with ranks.first_one_first():  # the others then find the first one's cache
        cases = cases_for(model)
        watched = watched_cases(args, model, need_target)
    settings, policy = _fitted(args, model, cases, settings, bytes_of), _policy(args, model, ranks)
    names = (Path(place_and_repeats(source)[0]).name for source in args.data)
    about = {"dataset": " + ".join(names)}
    if args.lora:
        about["loras"] = ", ".join(f"{file.name}:{strength:g}" for file, strength in args.lora)
    parts = {"model": model, "cases": cases, "settings": settings, "policy": policy}
    more = {"folder": run_folder(args), "ranks": ranks, "watched": watched, "about": about}
    return {**parts, **more}


def _loaded(args: argparse.Namespace, settings: RunSettings) -> Model:
    if not settings.offload:
        return load_model(args)
    if args.full:
        raise InputError("--offload is for adapters, whose base stays as it is: leave --full out.")
    if args.lora:
        raise InputError(
            "--offload takes no --lora: merge it into the checkpoint (convert --lora)."
        )
    device = pick_device(args.device)
    model = load_model(argparse.Namespace(**{**vars(args), "device": "cpu"}))
    offload(model.transformer, device)
    model.image_tokenizer.to(device)
    return replace(model, device=torch.device(device))


def _write_run_file(args: argparse.Namespace, run: TrainingRun, **rollouts: Any) -> None:
    """Write what ``args`` say, and what was chosen where they do not, beside the run."""
    if not run.ranks.first:
        return
    own = {*vars(args)} - {"run", "resume", "quiet"}
    values = {name: placed(name, getattr(args, name)) for name in sorted(own)}
    if args.data is not None:
        values |= {} if args.full else vars(_adapter(args))
        values |= {} if run.kind == DPORun.kind else vars(data_settings(args))
    settings = {name: getattr(run.settings, name) for name in options_of(run.settings)}
    write_run_file(run.folder.path / NAME, run.kind, {**values, **settings, **rollouts})


def _ranks(args: argparse.Namespace) -> Ranks:
    ranks = launched_ranks(pick_device(args.device))
    args.quiet = args.quiet or not ranks.first
    return ranks


def _fitted(
    args: argparse.Namespace,
    model: Model,
    cases: Sequence[Case],
    settings: RunSettings,
    bytes_of: Callable[..., int],
) -> RunSettings:
    """``settings`` with as large a micro-batch as a GPU has room for, unless it was given.

    Raises ``InputError`` where not even one sequence fits.
    """
    free, needed = free_bytes(model.device), 0
    if args.full or args.micro_batch or free == math.inf:
        return settings
    rank, layers, start = _shape(args)
    dora = is_dora(start) if start else _adapter(args).dora
    trained = trained_parameters(model, layers, rank, dora=dora)
    layer = streamed_bytes(model.transformer) if settings.offload else 0
    for at_once in _MICRO_BATCHES:
        needed = bytes_of(model, cases, settings, trained, at_once, dora=dora) + layer
        if needed < _SHARE * free:
            note(args, f"up to {at_once} sequences at a time, which need {readable_size(needed)}")
            return replace(settings, micro_batch=at_once)
    raise InputError(
        f"Training needs {readable_size(needed)} in addition to the model; the GPU has "
        f"{readable_size(int(free))} free: quantise the checkpoint with convert --quantize, or use "
        "a smaller --rank or --text-length."
    )


def _policy(args: argparse.Namespace, model: Model, ranks: Ranks) -> Policy:
    if args.full and args.existing_lora:
        raise InputError("--existing-lora trains an adapter further: do not give --full with it.")
    if args.full and isinstance(ranks, AcceleratedRanks):
        return ShardedWeights(model.transformer, ranks.accelerator.device)
    if args.full:
        if args.dtype in (None, "auto"):
            model.transformer.float()
        return FullWeights(model.transformer)
    rank, layers, start = _shape(args)
    adapter, seed = _adapter(args), args.seed or 0
    shape = {"rank": rank, "layers": layers, "dora": adapter.dora, "start": start}
    return LoRA(model.transformer, alpha=None if start else adapter.alpha, seed=seed, **shape)


def _check_existing(args: argparse.Namespace, model: Model) -> None:
    if file := args.existing_lora:
        _, metadata = read_adapter(file)
        check_variant(model, metadata, str(file))
        if doubt := doubt_about(model, metadata, str(file)):
            note(args, doubt)


def _shape(args: argparse.Namespace) -> tuple[int, Sequence[str], Mapping[str, Tensor] | None]:
    """Rank and layers of the adapter, and its tensors where it is to be trained further."""
    if args.existing_lora:
        state, _ = read_adapter(args.existing_lora)
        return *rank_and_layers(state), state
    adapter = _adapter(args)
    return adapter.rank, LAYER_SETS[adapter.layers], None


def _adapter(args: argparse.Namespace) -> AdapterSettings:
    return AdapterSettings(**given(args, options_of(AdapterSettings)))


def _train(
    args: argparse.Namespace,
    run: TrainingRun,
    shown: Sequence[str],
    save: Save,
    rollouts: Mapping[str, Any] | None = None,
) -> None:
    """Train to the end; ``save`` what was trained, at Ctrl-C, too. ``shown``: metrics to tell.
    ``rollouts``: settings of the sampler, for the run file."""
    if args.resume:
        run.resume()
        note(args, f"resuming after step {run.step}")
    _write_run_file(args, run, **(rollouts or {}))
    with tqdm(
        total=run.settings.steps, initial=run.step, desc="training", unit="step", disable=args.quiet
    ) as bar:
        latest: dict[str, str] = {}

        def show_step(step: int, metrics: dict[str, float]) -> None:
            names = (*shown, run.held_out_name, "guard_loss")
            latest.update({n: f"{metrics[n]:.4g}" for n in names if n in metrics})
            bar.set_postfix(latest)
            bar.update(step - bar.n)

        def show_phase(phase: str, done: int, total: int) -> None:
            bar.set_description(f"{phase} {100 * done // total} %")

        try:
            run.train(show_step, show_phase)
        except KeyboardInterrupt:
            bar.close()
            resumed = "" if run.folder.saved_step is None else " --resume continues it."
            note(args, f"{run.folder.last_good}{resumed}")
            if run.step and run.folder.saved_step == run.step and not run.policy.sharded:
                _finish(run, save)
            raise
        except Waiting as waiting:
            bar.close()
            say_where_to_vote(args, run.folder.path, waiting)
            return
    if run.step < run.settings.steps:
        note(args, f"stopped after step {run.step}: nothing improved for a while.")
    for line in run.watch.verdict().splitlines():
        note(args, line)
    _finish(run, save)
    run.ranks.close()


def _finish(run: TrainingRun, save: Save) -> None:
    with run.averaged():
        weights = run.policy.state_dict()
        if run.ranks.first:
            print(f"{save(weights)}  ({run.step} steps)")


def _save(args: argparse.Namespace, run: TrainingRun, weights: Mapping[str, Tensor]) -> Path:
    try:
        if isinstance(run.policy, LoRA):
            save_adapter(args.output, run.policy, {**run.metadata(), **base_metadata(run.model)})
        else:
            save_whole(args.output, weights, _source(args), run.metadata())
    except OSError as error:
        raise InputError(
            f"{args.output} cannot be written ({error.strerror or error}): --resume with another "
            f"--output and --run-folder {run_folder(args)}."
        ) from None
    return args.output

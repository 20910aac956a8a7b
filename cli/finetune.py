"""``train pararl``, and ``train sft`` on a dataset: adapters, or all weights, of any checkpoint."""

from __future__ import annotations

import argparse
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ..mmp_core import InputError, Model
from ..mmp_core.checkpoint.load import open_checkpoint
from ..mmp_core.files import readable_size
from ..mmp_core.memory import free_bytes
from ..mmp_core.model.config import LAYER_SETS
from ..mmp_core.options import options_of
from ..training.cases import Case, Reward
from ..training.data.dataset import EditDataset, open_dataset, tokenised
from ..training.data.registry import GENERATED
from ..training.loop.memory import finetune_bytes, pararl_bytes, trained_parameters
from ..training.loop.run import PolicyRun
from ..training.loop.settings import RunSettings
from ..training.pararl.run import ParaRLRun
from ..training.pararl.settings import ParaRLSettings
from ..training.rewards.clip import ClipScorer, clip_folder
from ..training.rewards.registry import weighted_reward
from ..training.sft.run import FinetuneRun
from ..training.sft.settings import SFTSettings
from ..training.weights.adapter_files import base_metadata, save_adapter
from ..training.weights.policies import FullWeights, LoRA, Policy
from ..training.weights.settings import AdapterSettings
from ..training.weights.sharded import ShardedWeights
from ..training.weights.whole_files import check_source, save_whole
from .model import load_model, memory_explained, note, pick_device
from .options import given
from .training_options import chosen, chosen_rollouts

_GENERATED_CASES = 1000
_MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
_SHARE = 0.9
"""Of a GPU's free memory, that may be counted on."""


def pararl(args: argparse.Namespace) -> None:
    settings = ParaRLSettings(**chosen(args, ParaRLSettings), sampler=chosen_rollouts(args))
    _check_places(args)
    if not args.reward and args.data not in GENERATED:
        raise InputError("--reward: say what to train for, such as clip:FOLDER.")
    dataset = _dataset(args)
    accelerator = _launched(args)
    reward = _reward(args, dataset)
    with memory_explained():
        model = load_model(args)
        cases = _cases(args, dataset, model, accelerator, need_target=False)
        settings = _fitted(args, model, cases, settings, pararl_bytes)
        run = ParaRLRun(
            model,
            cases,
            reward,
            settings,
            _folder(args),
            policy=_policy(args, model, accelerator),
            accelerator=accelerator,
        )
        _train(args, model, run, ("reward_mean", "kl"))


def sft(args: argparse.Namespace) -> None:
    settings = SFTSettings(**chosen(args, SFTSettings))
    _check_places(args)
    dataset = _dataset(args)
    accelerator = _launched(args)
    with memory_explained():
        model = load_model(args)
        cases = _cases(args, dataset, model, accelerator, need_target=True)
        settings = _fitted(args, model, cases, settings, finetune_bytes)
        run = FinetuneRun(
            model,
            cases,
            settings,
            _folder(args),
            policy=_policy(args, model, accelerator),
            accelerator=accelerator,
        )
        _train(args, model, run, ("text_loss", "image_loss"))


def _folder(args: argparse.Namespace) -> Path:
    return args.run_folder or args.output.with_name(f"{args.output.stem}-run")


def _check_places(args: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what cannot be written or resumed."""
    if args.output.suffix != ".safetensors":
        raise InputError(f"{args.output}: end the name in .safetensors.")
    if args.output.is_dir():
        raise InputError(f"{args.output} is a folder; give the name of a file in it.")
    folder = _folder(args)
    begun = (folder / "run.pt").exists()
    if begun and not args.resume:
        raise InputError(
            f"{folder} holds a run: --resume continues it, --run-folder keeps another elsewhere."
        )
    if args.resume and not begun:
        raise InputError(f"{folder} holds no run to resume.")
    if args.full:
        check_source(open_checkpoint(args.model, image_tokenizer_path=args.image_tokenizer))
    for place in (folder, args.output.parent):
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{place} cannot be made ({error.strerror or error}).") from None


def _launched(args: argparse.Namespace) -> Any:
    """Accelerate's view of the processes that ``accelerate launch`` or ``torchrun`` began."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    try:
        from accelerate import Accelerator
    except ImportError:
        raise InputError(
            "Several processes train together through accelerate: pip install accelerate."
        ) from None
    accelerator = Accelerator(cpu=pick_device(args.device) == "cpu")
    args.quiet = args.quiet or not accelerator.is_main_process
    return accelerator


def _dataset(args: argparse.Namespace) -> EditDataset:
    if args.data in GENERATED:
        return GENERATED[args.data].make(args.cases or _GENERATED_CASES)
    return open_dataset(args.data, bad_items=args.bad_items or "skip", limit=args.cases)


def _cases(
    args: argparse.Namespace,
    dataset: EditDataset,
    model: Model,
    accelerator: Any,
    need_target: bool,
) -> Sequence[Case]:
    """Tokenised by the first process, then by the others from its cache."""
    with accelerator.main_process_first() if accelerator else nullcontext():
        return _tokenised(args, dataset, model, need_target)


def _tokenised(
    args: argparse.Namespace, dataset: EditDataset, model: Model, need_target: bool
) -> Sequence[Case]:
    with tqdm(desc="tokenising", unit="picture", delay=1, disable=args.quiet) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        cases = tokenised(
            dataset,
            model,
            cache=_folder(args) / "codes.safetensors",
            need_target=need_target,
            text_length=args.text_length,
            callback=advance,
        )
    for name, reason in cases.skipped:
        note(args, f"skipped {name}: {reason}")
    note(args, " ".join(filter(None, (f"{len(cases)} cases of {dataset.place}.", cases.note))))
    return cases


def _reward(args: argparse.Namespace, dataset: EditDataset) -> Reward:
    device = pick_device(args.device)
    return weighted_reward(
        args.reward or [GENERATED[args.data].reward],
        lambda place: ClipScorer(clip_folder(place), device=device),
        dataset,
    )


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
    free = free_bytes(model.device)
    if args.full or args.micro_batch or free == math.inf:
        return settings
    adapter = _adapter(args)
    trained = trained_parameters(model, LAYER_SETS[adapter.layers], adapter.rank)
    for at_once in _MICRO_BATCHES:
        needed = bytes_of(model, cases, settings, trained, at_once)
        if needed < _SHARE * free:
            note(args, f"{at_once} sequences at a time, which need {readable_size(needed)}")
            return replace(settings, micro_batch=at_once)
    raise InputError(
        f"Training needs {readable_size(needed)} beside the model; the GPU has "
        f"{readable_size(int(free))} free: quantise the checkpoint with convert --quantize, or use "
        "a smaller --rank or --text-length."
    )


def _policy(args: argparse.Namespace, model: Model, accelerator: Any) -> Policy:
    if args.full and accelerator:
        return ShardedWeights(model.transformer, accelerator.device)
    if args.full:
        if args.dtype in (None, "auto"):
            model.transformer.float()
        return FullWeights(model.transformer)
    adapter, seed = _adapter(args), args.seed or 0
    return LoRA(model.transformer, rank=adapter.rank, layers=LAYER_SETS[adapter.layers], seed=seed)


def _adapter(args: argparse.Namespace) -> AdapterSettings:
    return AdapterSettings(**given(args, options_of(AdapterSettings)))


def _train(args: argparse.Namespace, model: Model, run: PolicyRun, shown: Sequence[str]) -> None:
    if args.resume:
        run.resume()
        note(args, f"resuming after step {run.step}")
    with tqdm(
        total=run.settings.steps,
        initial=run.step,
        desc="training",
        unit="step",
        disable=args.quiet,
    ) as bar:

        def show(step: int, metrics: dict[str, float]) -> None:
            bar.set_postfix({name: f"{metrics[name]:.4g}" for name in shown})
            bar.update(step - bar.n)

        def tell(phase: str, done: int, total: int) -> None:
            bar.set_description(f"{phase} {100 * done // total} %")

        with _ended_politely():
            try:
                run.train(show, tell)
            except KeyboardInterrupt:
                bar.close()
                note(args, f"{run.folder.last_good} --resume continues it.")
                if run.step and run.folder.saved_step == run.step and not run.sharded:
                    _finish(args, model, run)
                raise
    _finish(args, model, run)
    run.ranks.close()


def _finish(args: argparse.Namespace, model: Model, run: PolicyRun) -> None:
    """Write what was trained, of however many steps."""
    weights = run.policy.state_dict()
    if run.ranks.first:
        _save(args, model, run, weights)
        print(f"{args.output}  ({run.step} steps)")


@contextmanager
def _ended_politely() -> Iterator[None]:
    """A cluster's SIGTERM stops the run as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _save(
    args: argparse.Namespace, model: Model, run: PolicyRun, weights: Mapping[str, Tensor]
) -> None:
    about = {**run.metadata(), "dataset": Path(args.data).name}
    if args.lora:
        about["loras"] = ", ".join(f"{file.name}:{strength:g}" for file, strength in args.lora)
    try:
        if args.full:
            source = open_checkpoint(args.model, image_tokenizer_path=args.image_tokenizer)
            save_whole(args.output, weights, source, about)
        else:
            save_adapter(args.output, run.policy, {**about, **base_metadata(model)})
    except OSError as error:
        raise InputError(
            f"{args.output} cannot be written ({error.strerror or error}): --resume with another "
            f"--output and --run-folder {_folder(args)}."
        ) from None

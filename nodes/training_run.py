"""What both training nodes do: from widgets to a run, its outputs, and what is left of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from comfy_api.latest import io

from ..mmp_core import InputError, Model
from ..mmp_core.checkpoint.adapters import doubt_about, read_adapter
from ..mmp_core.model.config import LAYER_SETS
from ..training.data.dataset import EditDataset, TokenisedDataset, tokenised
from ..training.loop.memory import trained_parameters
from ..training.loop.run import PolicyRun
from ..training.weights.adapter_files import adapter_tensors, base_metadata, save_adapter
from ..training.weights.policies import LoRA
from . import host
from .host import Interrupted, TrainingRoom, folders, trainable
from .host.training_folders import run_folder, runs_folder
from .training_recipe import Recipe
from .training_view import TrainingView, curve

_ADAPTER = "adapter.safetensors"
_MOST_SEQUENCES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begin:
    """What is trained, and where it is kept: the widgets that both nodes have.

    ``rank``, ``layers``: of the adapter, unless it continues the file ``existing_lora``.
    ``micro_batch``: 0 for as many as fit. ``text_length``: 0 for the checkpoint's own.
    """

    rank: int
    layers: str
    existing_lora: str
    micro_batch: int
    text_length: int
    run_name: str
    resume: bool
    preview_every: int


def train(
    hosted: host.HostedModel, dataset: EditDataset, recipe: Recipe, begin: Begin, node_id: str
) -> io.NodeOutput:
    """Train as ``recipe`` says. Raises ``InputError``, what the run was so far being kept."""
    recipe.check(dataset)
    folder = run_folder(begin.run_name, begin.resume)
    existing = _existing(hosted.model, begin.existing_lora)
    with trainable(hosted):
        return _trained(hosted, dataset, recipe, begin, folder, existing, host.Progress(node_id))


def _trained(
    hosted: host.HostedModel,
    dataset: EditDataset,
    recipe: Recipe,
    begin: Begin,
    folder: Path,
    existing: Existing | None,
    progress: host.Progress,
) -> io.NodeOutput:
    layers = existing.layers if existing else LAYER_SETS[begin.layers]
    rank = existing.rank if existing else begin.rank
    recipe.load()
    cases = _cases(hosted, dataset, recipe, begin.text_length, progress)
    room, trained = TrainingRoom(hosted), trained_parameters(hosted.model, layers, rank)

    def bytes_of(at_once: int) -> int:
        return recipe.bytes_of(hosted.model, cases, trained, at_once)

    at_once = room.sequences(bytes_of, min(recipe.most, _MOST_SEQUENCES), begin.micro_batch)
    told = room.prepare(bytes_of(at_once))
    _log.info("MMaDA-Parallel: training needs %s; %d sequence(s) at once.", told, at_once)
    settings = replace(recipe.settings, micro_batch=at_once)
    with LoRA(
        hosted.model.transformer, rank=rank, layers=layers, seed=settings.seed, device=room.device
    ) as policy:
        if existing:
            existing.put_into(policy)
        run = recipe.run(hosted.model, cases, settings, folder, policy)
        if begin.resume:
            run.resume()
        view = TrainingView(progress, run, recipe, begin.preview_every, room.in_use)
        return _outputs(hosted, run, recipe, view, dataset.place)


def _outputs(
    hosted: host.HostedModel, run: PolicyRun, recipe: Recipe, view: TrainingView, place: str
) -> io.NodeOutput:
    about = {"dataset": place, **base_metadata(hosted.model)}
    adapter = run.folder.path / _ADAPTER
    try:
        run.train(view.callback, view.progress)
    except Interrupted:
        if run.step:
            save_adapter(adapter, run.policy, {**run.metadata(), **about})
        view.last(f"Interrupted. {run.folder.last_good} Turn on resume to go on from there.")
        _log.info("MMaDA-Parallel: training was interrupted. %s", run.folder.last_good)
        raise
    try:
        save_adapter(adapter, run.policy, {**run.metadata(), **about})
    except OSError as error:
        raise InputError(
            f"{adapter} cannot be written ({error.strerror or error}): make room there, turn on "
            "resume, and queue again."
        ) from None
    view.last(f"Done. The adapter is kept in {adapter}.")
    lines = run.folder.lines()
    pixels = curve(lines, *recipe.curve)
    return io.NodeOutput(
        adapter_tensors(run.policy),
        {"loss": [line["loss"] for line in lines]},
        run.step,
        host.to_intermediate(pixels),
    )


def _cases(
    hosted: host.HostedModel,
    dataset: EditDataset,
    recipe: Recipe,
    text_length: int,
    progress: host.Progress,
) -> TokenisedDataset:
    pictures = (picture for item in dataset for picture in (item.image, item.target))
    hosted.prepare_encoding(picture.size for picture in pictures if picture)

    def callback(done: int, total: int) -> None:
        host.stop_if_interrupted()
        if progress.text_due:
            progress.show_text(f"encoding pictures: {done} of {total}")

    cases = tokenised(
        dataset,
        hosted.model,
        cache=runs_folder() / "codes.safetensors",
        batch=1,
        need_target=recipe.need_target,
        text_length=text_length or None,
        callback=callback,
    )
    for name, reason in cases.skipped:
        _log.warning("MMaDA-Parallel: skipped %s: %s", name, reason)
    return cases


@dataclass(frozen=True)
class Existing:
    """An adapter of a file, to train on."""

    name: str
    state: dict[str, torch.Tensor]

    @property
    def rank(self) -> int:
        return max(t.shape[0] for name, t in self.state.items() if ".lora_A." in name)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(sorted({name.split(".")[-3] for name in self.state}))

    def put_into(self, policy: LoRA) -> None:
        own = policy.state_dict()
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in self.state.items()}:
            raise InputError(
                f"{self.name} cannot be trained on: expected an adapter of this model with one "
                "rank and the same layers in every block."
            )
        policy.load_state_dict(self.state)


def _existing(model: Model, name: str) -> Existing | None:
    if name == folders.NO_ADAPTER:
        return None
    state, metadata = read_adapter(folders.adapter_file(name))
    if doubt := doubt_about(model, metadata, name):
        _log.warning(doubt)
    return Existing(name, state)

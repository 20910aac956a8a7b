"""What both training nodes do: from widgets to a run, its outputs, and what is left of it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from comfy_api.latest import io

from ..mmp_core import InputError, Model
from ..mmp_core.checkpoint.adapters import doubt_about, read_adapter
from ..mmp_core.model.config import LAYER_SETS
from ..training.cases import Case
from ..training.data.dataset import EditDataset, tokenised
from ..training.loop.memory import trained_parameters
from ..training.loop.run import TrainingRun
from ..training.weights.adapter_files import adapter_tensors, base_metadata, save_adapter
from ..training.weights.policies import LoRA, rank_and_layers
from ..views.examples import answers_sheet
from ..views.plot import line_plot
from . import host
from .host import folders
from .pictures import to_pixels
from .training_recipes import Metrics, Recipe

_ADAPTER = "adapter.safetensors"
_MOST_SEQUENCES = 64
_RECENT = 10
"""Steps over which the time per step is averaged."""
_SAMPLES = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingInputs:
    """The widgets that both nodes have beside those of a run's settings.

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

    @classmethod
    def taken_from(cls, widgets: dict[str, Any]) -> TrainingInputs:
        """Leaves in ``widgets`` what goes into the settings of a run."""
        return cls(**{field.name: widgets.pop(field.name) for field in fields(cls)})


def train(
    hosted: host.HostedModel,
    dataset: EditDataset,
    recipe: Recipe,
    inputs: TrainingInputs,
    node_id: str,
) -> io.NodeOutput:
    """Train as ``recipe`` says. After an ``InputError`` the run is kept as far as it came."""
    progress = host.Progress(node_id)
    folder = folders.run_folder(inputs.run_name, inputs.resume)
    existing = _existing(hosted.model, inputs.existing_lora)
    rank, layers = inputs.rank, LAYER_SETS[inputs.layers]
    if existing:
        rank, layers = rank_and_layers(existing)
    with host.trainable(hosted):
        clips = recipe.load(dataset)
        cases = _cases(hosted, dataset, recipe, inputs.text_length, progress)
        memory = host.TrainingMemory(hosted, clips)
        trained = trained_parameters(hosted.model, layers, rank)

        def bytes_of(at_once: int) -> int:
            return recipe.bytes_of(hosted.model, cases, recipe.settings, trained, at_once)

        at_once = memory.sequences(bytes_of, min(recipe.most, _MOST_SEQUENCES), inputs.micro_batch)
        needed = memory.prepare(bytes_of(at_once))
        _log.info("MMaDA-Parallel: training needs %s; %d sequence(s) at once.", needed, at_once)
        settings = replace(recipe.settings, micro_batch=at_once)
        with LoRA(
            hosted.model.transformer,
            rank=rank,
            layers=layers,
            seed=settings.seed,
            device=memory.device,
            start=existing or None,
        ) as policy:
            run = recipe.run(
                model=hosted.model, cases=cases, settings=settings, folder=folder, policy=policy
            )
            if inputs.resume:
                run.resume()
            view = TrainingView(progress, run, recipe, inputs.preview_every, memory.in_use)
            return _outputs(run, policy, view, dataset.place)


def _outputs(run: TrainingRun, policy: LoRA, view: TrainingView, place: str) -> io.NodeOutput:
    adapter = run.folder.path / _ADAPTER

    def save() -> None:
        about = {"dataset": place, **base_metadata(run.model)}
        save_adapter(adapter, policy, {**run.metadata(), **about})

    try:
        run.train(view.callback, view.progress)
    except host.Interrupted:
        if run.step:
            save()
        view.show(f"Interrupted. {run.folder.last_good} Turn on resume to go on from there.")
        _log.info("MMaDA-Parallel: training was interrupted. %s", run.folder.last_good)
        raise
    try:
        save()
    except OSError as error:
        raise InputError(
            f"{adapter} cannot be written ({error.strerror or error}): make room there, turn on "
            "resume, and queue again."
        ) from None
    text = view.show(f"Done. The adapter is kept in {adapter}.")
    lines = run.folder.lines()
    metric, label = view.recipe.curve
    values = torch.tensor([[line[metric]] for line in lines])
    steps = [int(line["step"]) for line in lines]
    curve = line_plot(values, steps, x_label="step", y_label=label)
    return io.NodeOutput(
        adapter_tensors(policy),
        {"loss": [line["loss"] for line in lines]},
        run.step,
        host.to_intermediate(to_pixels([curve])),
        ui={"text": (text,)},
    )


def _cases(
    hosted: host.HostedModel,
    dataset: EditDataset,
    recipe: Recipe,
    text_length: int,
    progress: host.Progress,
) -> tuple[Case, ...]:
    pictures = (picture for item in dataset for picture in (item.image, item.target))
    hosted.prepare_encoding(picture.size for picture in pictures if picture)

    def callback(done: int, total: int) -> None:
        host.stop_if_interrupted()
        if progress.text_due:
            progress.show_text(f"encoding pictures: {done} of {total}")

    cases = tokenised(
        dataset,
        hosted.model,
        cache=folders.runs_folder() / "codes.safetensors",
        batch=1,
        need_target=recipe.need_target,
        text_length=text_length or None,
        callback=callback,
    )
    for name, reason in cases.skipped:
        _log.warning("MMaDA-Parallel: skipped %s: %s", name, reason)
    return cases.cases


def _existing(model: Model, name: str) -> dict[str, torch.Tensor]:
    """The tensors of the adapter file that a widget names; none for none."""
    if name == folders.NO_ADAPTER:
        return {}
    state, metadata = read_adapter(folders.adapter_file(name))
    if doubt := doubt_about(model, metadata, name):
        _log.warning(doubt)
    return state


class TrainingView:
    """``callback`` and ``progress`` for ``TrainingRun.train``; stops when interrupted.

    ``preview_every``: steps between samples, 0 for none. ``memory``: gives a line about it.
    """

    def __init__(
        self,
        page: host.Progress,
        run: TrainingRun,
        recipe: Recipe,
        preview_every: int,
        memory: Callable[[], str],
    ):
        self.page, self.run, self.recipe = page, run, recipe
        self.preview_every, self.memory = preview_every, memory
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        self._lines = ""

    def progress(self, phase: str, done: int, total: int) -> None:
        host.stop_if_interrupted()
        if self.page.text_due:
            share = f", {100 * done // total} %" if total else ""
            self.show(f"step {self.run.step + 1} of {self.run.settings.steps}: {phase}{share}")

    def callback(self, step: int, metrics: Metrics) -> None:
        total = self.run.settings.steps
        self._seconds.append(metrics["seconds"])
        each = sum(self._seconds) / len(self._seconds)
        left = f", {_duration((total - step) * each)} left" if step < total else ""
        figures, pace = self.recipe.figures(metrics), f"{each:.1f} s per step{left}"
        self._lines = "\n".join((f"after step {step} of {total}:", figures, pace, self.memory()))
        self.show()
        samples = None
        if self.preview_every and (step % self.preview_every == 0 or step == total):
            pairs = self.recipe.samples(self.run, _SAMPLES)
            shown = ((pair.case.instruction, pair.text, pair.picture) for pair in pairs)
            samples = answers_sheet(shown)
        self.page.show(step, total, samples)
        host.stop_if_interrupted()

    def show(self, line: str = "") -> str:
        """``line`` above the latest figures; the whole text."""
        text = "\n".join(filter(None, (line, self._lines)))
        self.page.show_text(text)
        return text


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"

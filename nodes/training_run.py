"""What both training nodes do: from widgets to a run, its outputs, and what is left of it."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from PIL import Image

from ..mmp_core import InputError, Model
from ..mmp_core.checkpoint.adapters import check_variant, doubt_about, read_adapter
from ..mmp_core.files import readable_duration
from ..mmp_core.model.config import LAYER_SETS
from ..training.cases import Case
from ..training.data.dataset import EditDataset, summed_up, tokenised
from ..training.data.guard import guard_of
from ..training.data.items import counted
from ..training.dpo.preferences import Preferences
from ..training.loop.keeping import kept_samples
from ..training.loop.memory import trained_parameters
from ..training.loop.run import TrainingRun, Waiting
from ..training.loop.watch import MOST_SAMPLES, Watched
from ..training.weights.adapter_files import adapter_tensors, base_metadata, save_adapter
from ..training.weights.policies import LoRA, is_dora, rank_and_layers
from ..training.weights.settings import AdapterSettings
from ..views.examples import Answer, answers_sheet
from ..views.plot import line_plot
from ..views.sheet import stacked
from ..views.strip import samples_strip
from . import host
from .host import folders, training_folders
from .pictures import to_pixels
from .run_files import write_run_file_of
from .training_recipes import Metrics, Recipe, part_name

WAITS = "mmada_parallel_waits"
"""In a result, the name of the run that waits for votes, for the page."""
_ADAPTER = "adapter.safetensors"
_MOST_SEQUENCES = 64
_RECENT, _SURE = 10, 3
"""Steps over which the time per step is averaged, and fewest to say from it how much is left."""
_SAMPLES = 4
_PREVIEW_SIZE = 1024
_log = logging.getLogger(__name__)
_interruptions: Counter[str] = Counter()


def begun_with(
    node_id: str | None, run_name: str | None, existing_lora: str | None = None, **_: Any
) -> tuple[Any, ...]:
    """What a run depends on beside its widgets: how many of its name were interrupted, the votes of
    the newest, whether its folder is gone, and the adapter that it begins with. ComfyUI would else
    take what a run gave for the result of the next. ``run_name``: ``None``, where it is linked:
    of all."""
    interrupted = _interruptions.total() if run_name is None else _interruptions[run_name]
    adapter = folders.fingerprint(
        lambda: folders.adapter_files(existing_lora or folders.NO_ADAPTER)
    )
    return interrupted, host.votes_so_far(run_name), host.times_gone(node_id), adapter


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
    rslora: bool = False
    dora: bool = False
    held_out_data: EditDataset | None = None
    guard: EditDataset | None = None
    samples: EditDataset | None = None

    @classmethod
    def taken_from(cls, widgets: dict[str, Any]) -> TrainingInputs:
        """Leaves in ``widgets`` what goes into the settings of a run."""
        names = [field.name for field in fields(cls) if field.name in widgets]
        return cls(**{name: widgets.pop(name) for name in names})

    @property
    def watched(self) -> dict[str, EditDataset | None]:
        """Datasets that are not trained on, by their names."""
        names = ("held_out_data", "guard", "samples")
        return {name: getattr(self, name) for name in names}


def train(
    hosted: host.HostedModel,
    dataset: EditDataset | Preferences,
    recipe: Recipe,
    inputs: TrainingInputs,
    node_id: str,
) -> io.NodeOutput:
    """Train as ``recipe`` says. After an ``InputError`` the run is kept as far as it came."""
    progress = host.Progress(node_id)
    resume = inputs.resume or (recipe.waits_for_votes and host.waits(inputs.run_name))
    existing = _existing(hosted.model, inputs.existing_lora)
    rank, layers = inputs.rank, LAYER_SETS[inputs.layers]
    alpha = None if existing else AdapterSettings(rank=rank, rslora=inputs.rslora).alpha
    dora = inputs.dora
    if existing:
        rank, layers = rank_and_layers(existing)
        dora = is_dora(existing)
    with training_folders.run_folder(inputs.run_name, resume) as folder, host.trainable(hosted):
        clips = recipe.load(dataset)
        if isinstance(dataset, Preferences):
            hosted.prepare_decoding((1, 1))
            cases = dataset.cases(hosted.model, _ask)
        else:
            cases = _cases(hosted, dataset, recipe.need_target, inputs, progress)
        watched = _watched(hosted, recipe, inputs, progress)
        memory = host.TrainingMemory(hosted, clips)
        trained = trained_parameters(hosted.model, layers, rank, dora=dora)

        def bytes_of(at_once: int) -> int:
            settings = recipe.settings
            return recipe.bytes_of(hosted.model, cases, settings, trained, at_once, dora=dora)

        at_once = memory.sequences(bytes_of, min(recipe.most, _MOST_SEQUENCES), inputs.micro_batch)
        cost = memory.prepare(bytes_of(at_once))
        _log.info("MMaDA-Parallel: training, %d sequence(s) at once. %s", at_once, cost)
        progress.show_text(cost)
        settings = replace(recipe.settings, micro_batch=at_once)
        with LoRA(
            hosted.model.transformer,
            rank=rank,
            alpha=alpha,
            dora=dora,
            layers=layers,
            seed=settings.seed,
            device=memory.device,
            start=existing or None,
        ) as policy:
            run = recipe.run(
                model=hosted.model,
                cases=cases,
                settings=settings,
                folder=folder,
                policy=policy,
                watched=watched,
                about={"dataset": dataset.place},
                callback=_ask,
            )
            if resume:
                run.resume(_ask)
            own = _own_options(run, recipe, inputs)
            write_run_file_of(run, hosted, dataset, inputs.watched, own)
            view = TrainingView(progress, run, recipe, inputs.preview_every, memory.in_use, cost)
            output = _outputs(run, policy, view, inputs.run_name)
            host.wrote(node_id, folder)
            return output


def _ask(done: int, total: int) -> None:
    """The run may be interrupted."""
    host.stop_if_interrupted()


def _own_options(run: TrainingRun, recipe: Recipe, inputs: TrainingInputs) -> dict[str, Any]:
    """Of the command that trains alike."""
    values = {
        "output": run.folder.path / _ADAPTER,
        "text_length": inputs.text_length or None,
        **recipe.options(),
    }
    if inputs.existing_lora != folders.NO_ADAPTER:
        return values | {"existing_lora": folders.adapter_file(inputs.existing_lora)}
    return values | {name: getattr(inputs, name) for name in ("rank", "layers", "rslora", "dora")}


def _outputs(run: TrainingRun, policy: LoRA, view: TrainingView, name: str) -> io.NodeOutput:
    """Train; after an interruption, too, the adapter as far as it is trained goes on to the nodes
    that follow, if there is one."""
    adapter, ended = run.folder.path / _ADAPTER, "Done."
    waits: dict[str, tuple[str]] = {}
    try:
        run.train(view.callback, view.progress)
        if run.step < run.settings.steps:
            ended = f"Stopped after step {run.step}: nothing improved for a while."
    except (host.Interrupted, InputError) as error:
        stopped = error if isinstance(error, host.Interrupted) else error.__cause__
        if not isinstance(stopped, host.Interrupted):  # which a reward may have met, and reported
            raise
        _interruptions[name] += 1
        ended = f"Interrupted. {run.folder.last_good} Turn on resume to go on from there."
        _log.info("MMaDA-Parallel: training was interrupted. %s", run.folder.last_good)
        if not run.step:
            view.show(ended)
            raise
    except Waiting as waiting:
        ended = f"{waiting} Choose the best answers below, then queue again."
        waits = {WAITS: (name,)}
        if not run.step:
            nothing = [host.nothing() for _ in range(4)]
            return io.NodeOutput(*nothing, ui={"text": (view.show(ended),), **waits})
    try:
        with run.averaged():
            save_adapter(adapter, policy, {**run.metadata(), **base_metadata(run.model)})
            tensors = adapter_tensors(policy)
    except OSError as error:
        raise InputError(
            f"{adapter} cannot be written ({error.strerror or error}): make room there, turn on "
            "resume, and queue again."
        ) from None
    text = view.show(f"{ended} The adapter is kept in {adapter}.")
    lines = run.folder.lines(_ask)
    metric, label = view.recipe.curve
    curve = _plot(lines, [metric], label) if lines else None  # a log may be gone
    curves = [each for each in (curve, view.part_curves, view.watched_curves) if each]
    return io.NodeOutput(
        tensors,
        {"loss": [line.get("loss", math.nan) for line in lines]},
        run.step,
        host.to_intermediate(to_pixels(curves)) if curves else host.nothing(),
        ui={"text": (text,), **waits},
    )


def _plot(lines: list[dict[str, float]], metrics: list[str], label: str) -> Image.Image:
    """Metrics of the log over the steps; of several, each with its name."""
    values = [[line.get(metric, math.nan) for line in counted(lines, _ask)] for metric in metrics]
    names = tuple(map(part_name, metrics)) if len(metrics) > 1 else ()
    steps = [int(line["step"]) for line in counted(lines, _ask)]
    columns = torch.stack([torch.tensor(column, dtype=torch.float64) for column in values], 1)
    _ask(0, 0)
    return line_plot(columns, steps, x_label="step", y_label=label, names=names)


def _cases(
    hosted: host.HostedModel,
    dataset: EditDataset,
    need_target: bool,
    inputs: TrainingInputs,
    progress: host.Progress,
) -> tuple[Case, ...]:
    items = host.interruptible(dataset)
    pictures = (picture for item in items for picture in (item.image, item.target))
    hosted.prepare_encoding(picture.size for picture in pictures if picture)

    def callback(done: int, total: int) -> None:
        host.stop_if_interrupted()
        if progress.text_due:
            progress.show_text(f"encoding pictures: {done} of {total}")

    cases = tokenised(
        dataset,
        hosted.model,
        cache=training_folders.runs_folder() / "codes.safetensors",
        batch=1,
        need_target=need_target,
        text_length=inputs.text_length or None,
        callback=callback,
    )
    for line in summed_up(cases.skipped, 20, _ask):
        _log.warning("MMaDA-Parallel: skipped %s", line)
    return cases.cases


def _watched(
    hosted: host.HostedModel, recipe: Recipe, inputs: TrainingInputs, progress: host.Progress
) -> Watched:
    guard = inputs.guard
    if guard is None and hosted.model.place:
        guard = guard_of(hosted.model.place)

    def cases(dataset: EditDataset | None, need_target: bool) -> tuple[Case, ...]:
        return _cases(hosted, dataset, need_target, inputs, progress) if dataset else ()

    samples = inputs.samples and replace(inputs.samples, items=inputs.samples[:MOST_SAMPLES])
    return Watched(
        cases(inputs.held_out_data, recipe.need_target or recipe.waits_for_votes),
        cases(guard, True),
        cases(samples, False),
        samples_strip,
    )


def _existing(model: Model, name: str) -> dict[str, torch.Tensor]:
    """The tensors of the adapter file that a widget names; none for none."""
    if name == folders.NO_ADAPTER:
        return {}
    state, metadata = read_adapter(folders.adapter_file(name), host.stop_if_interrupted)
    check_variant(model, metadata, name)
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
        cost: str,
    ):
        """``cost``: shown until there are figures."""
        self.page, self.run, self.recipe = page, run, recipe
        self.preview_every, self.memory = preview_every, memory
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        self._lines = cost
        self._samples: Image.Image | None = None
        self._shown: tuple[Any, ...] = (0, [], None)

    def progress(self, phase: str, done: int, total: int) -> None:
        host.stop_if_interrupted()
        if self.page.text_due:
            share = f", {100 * done // total} %" if total else ""
            self.show(f"step {self.run.step + 1} of {self.run.settings.steps}: {phase}{share}")

    def callback(self, step: int, metrics: Metrics) -> None:
        total, watch = self.run.settings.steps, self.run.watch
        self._seconds.append(metrics["seconds"])
        each = sum(self._seconds) / len(self._seconds)
        left = ""
        if step < total and len(self._seconds) >= _SURE:
            left = f", about {readable_duration((total - step) * each)} left"
        figures, pace = self.recipe.figures(metrics), f"{each:.1f} s per step{left}"
        lines = (f"after step {step} of {total}:", figures, watch.verdict(), pace, self.memory())
        self._lines = "\n".join(filter(None, lines))
        self.show()
        if self.preview_every and (step % self.preview_every == 0 or step == total):
            pairs = self.recipe.samples(self.run, _SAMPLES)
            self._samples = answers_sheet(
                Answer(p.case.instruction, p.text, p.picture, p.case.source and p.case.source())
                for p in pairs
            )
        self.page.show(step, total, self._preview(), _PREVIEW_SIZE)
        host.stop_if_interrupted()

    @property
    def part_curves(self) -> Image.Image | None:
        """Each reward of a sum over the steps."""
        lines = self.run.folder.lines(_ask)
        parts = self.recipe.parts(lines[-1]) if lines else []
        return _plot(lines, parts, "mean of each reward") if parts else None

    @property
    def watched_curves(self) -> Image.Image | None:
        """The losses on held-out and guard items over the steps, as shares of those at the start;
        rewards of held-out items as they are."""
        watch = self.run.watch
        columns: dict[str, list[float]] = {}
        for name, losses in (
            (self.run.held_out_name, [m.held_out for m in watch.measured]),
            ("guard_loss", [m.guard for m in watch.measured]),
        ):
            values = [value for value in losses if value is not None]
            if len(values) > 1:
                scale = values[0] if name.endswith("loss") else float(self.run.held_out_sign)
                columns[name.replace("_", " ")] = [value / (scale or 1.0) for value in values]
        if not columns:
            return None
        return line_plot(
            torch.tensor(list(columns.values())).T,
            [m.step for m in watch.measured],
            x_label="step",
            y_label="loss on items that are not trained on, 1 at the start",
            names=tuple(columns),
        )

    def _preview(self) -> Image.Image | None:
        """Curves, samples of one's own over time and answers, where one of these is new."""
        measured, samples = self.run.watch.measured, list(kept_samples(self.run.folder.path))
        state = (len(measured), samples, self._samples)
        if state == self._shown:
            return None
        self._shown = state
        strip = samples_strip(self.run.folder.path, rows=3, columns=5) if samples else None
        pictures = (self.part_curves, self.watched_curves, strip, self._samples)
        return stacked([picture for picture in pictures if picture])

    def show(self, line: str = "") -> str:
        """``line`` above the latest figures; the whole text."""
        text = "\n".join(filter(None, (line, self._lines)))
        self.page.show_text(text)
        return text

"""The run file of a node's run: the command that trains alike, where its options can say that."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..mmp_core.errors import InputError
from ..mmp_core.files import writing
from ..mmp_core.options import options_of
from ..training.data.dataset import EditDataset
from ..training.data.settings import DataSettings
from ..training.dpo.preferences import Preferences
from ..training.loop.run import TrainingRun
from ..training.loop.run_file import NAME, lora_option, write_run_file
from ..training.loop.watch import MOST_SAMPLES
from . import host

_log = logging.getLogger(__name__)


class _NotSaid(InputError):
    """What the command has no options for."""


def write_run_file_of(
    run: TrainingRun,
    hosted: host.HostedModel,
    dataset: EditDataset | Preferences,
    watched: Mapping[str, EditDataset | None],
    own: Mapping[str, Any],
) -> None:
    """So that the command can start the run again. Where its options cannot say all of it, no file
    is written, and the log says why. ``watched``: datasets by their options. ``own``: options of
    the training itself. Raises ``InputError`` where the file cannot be written."""
    file = run.folder.path / NAME
    try:
        values = {
            **_model(hosted),
            "run_folder": run.folder.path,
            **_data(dataset),
            **_watched(dataset, watched),
            **{n: getattr(run.settings, n) for n in options_of(run.settings)},
            **own,
        }
    except _NotSaid as reason:
        _log.warning(
            "MMaDA-Parallel: %s is not written, since the command cannot train alike: %s",
            NAME,
            str(reason),  # its traceback would keep the run in memory where a log keeps records
        )
        with writing(file):
            file.unlink(missing_ok=True)
    else:
        write_run_file(file, run.kind, values)


def _model(hosted: host.HostedModel) -> dict[str, Any]:
    if hosted.command is None:
        raise _NotSaid("the model does not come from Load MMaDA-Parallel.")
    loras = []
    for adapter in hosted.adapters:
        if adapter.file is None:
            raise _NotSaid("an adapter of the model comes from a node, not from a file.")
        loras.append(lora_option(adapter.file, adapter.strength))
    return {**hosted.command, "lora": loras}


def _data(dataset: EditDataset | Preferences) -> Mapping[str, Any]:
    if not dataset.options:
        raise _NotSaid("the dataset joins several that are read in different ways.")
    return dataset.options


def _watched(
    dataset: EditDataset | Preferences, watched: Mapping[str, EditDataset | None]
) -> dict[str, Any]:
    """The command reads held-out items as those that are trained on, but only in one form, and the
    others as they are."""
    plain = asdict(DataSettings())
    trained_on = {name: dataset.options.get(name, value) for name, value in plain.items()}
    said = {}
    for name, each in watched.items():
        if each is None:
            continue
        place, _, repeats = "".join(each.options.get("data", ())).rpartition("=")
        as_read = trained_on | {"mirrored": False, "crops": 0} if name == "held_out_data" else plain
        cases = each.options.get("cases")
        whole = cases is None or (name == "samples" and cases >= MOST_SAMPLES)
        alike = all(each.options.get(option) == value for option, value in as_read.items())
        if len(each.options.get("data", ())) != 1 or repeats != "1" or not (whole and alike):
            raise _NotSaid(f"{name} is not read as the command reads it.")
        said[name] = place
    return said

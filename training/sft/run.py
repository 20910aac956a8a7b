"""Supervised finetuning of a policy on cases with targets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.errors import InputError
from ...mmp_core.outside import check_kind
from ..cases import Case, Cases, EndlessCases
from ..data.apart import halves
from ..data.items import counted
from ..loop.run import PhaseCallback, TrainingRun, recomputing
from ..loop.signals import ends_quietly
from ..loop.watch import Watched
from ..weights.policies import Policy
from .batches import MicroBatch, Windows
from .loss import masked_losses
from .settings import SFTSettings


class SFTRun(TrainingRun):
    """An SFT run in ``folder``: see :class:`TrainingRun`, which takes ``options``, too. Every case
    needs its target."""

    kind = "sft"
    settings: SFTSettings

    def __init__(
        self,
        model: Model,
        cases: Cases,
        settings: SFTSettings,
        folder: Path | str,
        *,
        policy: Policy,
        **options: Any,
    ):
        check_kind(settings, SFTSettings, "settings", "settings of SFT")
        check_kind(options.get("watched"), Watched | None, "watched", "what is looked at")
        watched, self.rehearsed = options.pop("watched", None) or Watched(), list[Case]()
        if settings.rehearsal:
            guard, self.rehearsed = halves(watched.guard)
            watched = replace(watched, guard=guard)
        super().__init__(model, cases, settings, folder, policy=policy, watched=watched, **options)
        if settings.batch_size < self.ranks.count:
            raise InputError(
                f"The batch of {settings.batch_size} is for {self.ranks.count} processes: give "
                "each at least one case."
            )
        finite = () if isinstance(cases, EndlessCases) else cases
        checked = (*finite, *watched.guard, *self.rehearsed, *self.watch.watched.held_out)
        for case in counted(checked, self.callback):
            case.needed_target()
        self._windows: Iterator[list[list[MicroBatch]]] = iter(())
        self._window, self._steps = -1, list[list[MicroBatch]]()
        self._collecting: Callable[[int, int], Any] | None = None

    @cached_property
    def data(self) -> str:
        digest = hashlib.sha256(super().data.encode())
        finite = () if isinstance(self.cases, EndlessCases) else self.cases
        for case in counted((*finite, *self.rehearsed), self.callback):
            target = case.needed_target()
            for tokens in (target.text, target.image):
                digest.update(tokens.cpu().numpy().tobytes())
            if case.image_weight is not None:
                digest.update(case.image_weight.cpu().numpy().tobytes())
        return digest.hexdigest()

    def advance(self, progress: PhaseCallback | None = None) -> dict[str, float]:
        batches, share = self._batches(progress), 1 / self.settings.batch_size
        idle, sums = self.idle(len(batches)), [0.0, 0.0]
        for number, batch in enumerate(batches + batches[:1] * idle):
            if progress:
                progress("update", number, len(batches) + idle)
            losses = self._backward(batch, share if number < len(batches) else 0.0)
            sums = [total + loss for total, loss in zip(sums, losses, strict=True)]
        text, image = self.ranks.sum(sums)
        norm = self.apply_gradients(text + image)
        self.commit()
        return {"loss": text + image, "text_loss": text, "image_loss": image, "grad_norm": norm}

    def _backward(self, batch: MicroBatch, share: float) -> tuple[float, float]:
        """Add ``share`` of the gradient; the losses of text and image, times ``share``."""
        model, device = self.model, self.model.device
        with recomputing(model.transformer, self.settings.gradient_checkpointing):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16):
                losses = masked_losses(model.transformer, model.layout, batch.to(device))
            ((losses.text + losses.image) * share).backward()
        return float(losses.text.detach()) * share, float(losses.image.detach()) * share

    def _batches(self, progress: PhaseCallback | None = None) -> list[MicroBatch]:
        """This process's part of the present step."""
        self._collecting = progress and partial(progress, "collecting")
        window, place = divmod(self.step, self.settings.window)
        if window != self._window:
            windows, self._windows = self._windows, iter(())  # begun anew after an interruption
            steps = next(windows, None) if window == self._window + 1 else None
            if steps is None:
                windows = self._windows_from(window)
                steps = next(windows)
            self._windows, self._window, self._steps = windows, window, steps
        return self._steps[place]

    def _collected(self, done: int, total: int) -> None:
        if self._collecting:
            self._collecting(done, total)

    def _windows_from(self, first: int) -> Iterator[list[list[MicroBatch]]]:
        settings = self.settings
        last = max(first, (settings.steps - 1) // settings.window)
        loader = DataLoader(
            Windows(
                *(self.cases, settings, self.ranks.index, self.ranks.count, self.rehearsed),
                callback=None if settings.workers else self._collected,
            ),
            batch_size=None,
            sampler=range(first, last + 1),
            num_workers=settings.workers,
            generator=torch.Generator(),  # not the global one
            worker_init_fn=ends_quietly,
        )
        return iter(loader)

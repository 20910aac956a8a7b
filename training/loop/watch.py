"""What is done between the steps of a run: losses on other items, named adapters, samples."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ...mmp_core.errors import InputError, shown
from ...mmp_core.files import replacing
from ..cases import Case
from ..data.apart import origin_of
from ..samples import answers
from ..sft.held_out import fixed_loss
from ..weights.adapter_files import base_metadata, save_adapter
from ..weights.policies import LoRA
from .curves import Measured, best_of, since_best, verdict
from .keeping import BEST, Kept, kept_adapters, kept_samples

if TYPE_CHECKING:
    from .run import PhaseCallback, TrainingRun


MOST_SAMPLES = 8
"""Of more instructions to sample, the first so many are answered."""


@dataclass(frozen=True)
class Watched:
    """``held_out``: like what is trained on. ``guard``: what the model knew before. Both need
    their targets, held-out cases of ParaRL none. ``samples``: to be answered now and then.
    ``strip``: draws the samples of a run's folder over time."""

    held_out: Sequence[Case] = ()
    guard: Sequence[Case] = ()
    samples: Sequence[Case] = ()
    strip: Callable[[Path], Image.Image] | None = None


class Watch:
    """Looks at ``run`` after its steps, and before the first; what it saw survives with the run.

    Raises ``InputError`` for settings that ask for what there is nothing to do with.
    """

    def __init__(self, run: TrainingRun, watched: Watched):
        settings = run.settings
        self.run, self.watched, self.measured = run, watched, list[Measured]()
        self.kept: Kept | None = None
        if isinstance(run.policy, LoRA):
            self.kept = Kept(run.folder.path, partial(self._write, run.policy))
        elif settings.keep_every:
            raise InputError("keep_every keeps adapters, and all weights are trained here: give 0.")
        if settings.patience and not watched.held_out:
            raise InputError(
                "patience needs held-out items to see whether the model gets better: hold out a "
                "share of the items or give others."
            )

    @property
    def best(self) -> Measured | None:
        """See :func:`best_of`; ``None`` where nothing is measured, too."""
        return best_of(self.measured, self.run.settings.guard_rise) if self.measured else None

    def verdict(self) -> str:
        """A few lines on the latest losses and the best adapter; none where nothing is measured."""
        if not self.measured:
            return ""
        run, best = self.run, self.best
        name, sign = run.held_out_name.replace("held_out_", "held-out "), run.held_out_sign
        said = verdict(self.measured, run.settings.guard_rise, name, sign)
        if len(self.measured) == 1:
            return said
        if best is None:
            return f"{said}\nNo adapter so far is better than the model without one."
        file = f", kept in {run.folder.path / BEST}" if self.kept else ""
        return f"{said}\nThe best so far is that after step {best.step}{file}."

    @property
    def out_of_patience(self) -> bool:
        patience = self.run.settings.patience
        return bool(patience and self.measured) and patience <= since_best(
            self.measured, self.run.settings.guard_rise
        )

    def look(self, progress: PhaseCallback | None) -> dict[str, float]:
        """Do what is due after the present step, and at the start; what was measured.

        When interrupted by ``progress``, done anew by the next call.
        """
        run, kept = self.run, False
        every, steps = run.settings.evaluate_every, run.settings.steps
        lately = self.measured[-1].step if self.measured else -1
        if (self.watched.held_out or self.watched.guard) and not self.measured:
            self._measure(0, progress)
        if self.measured and _due(run.step, every, steps) and lately < run.step > 0:
            self._measure(run.step, progress)
        if self.kept and run.ranks.first:
            named = run.settings.keep_every
            regular = named and run.step and run.step % named == 0
            if regular or (self.best and self.best.step == run.step):
                self.kept.keep(run.step)
                kept = run.folder.saved_step != run.step
        if self.watched.samples:
            self._sample(progress)
        if kept:
            run.save()
        if not self.measured or self.measured[-1].step != run.step:
            return {}
        return self._named(self.measured[-1])

    def _measure(self, step: int, progress: PhaseCallback | None) -> None:
        with self._as_after(step):
            held_out = guard = None
            if self.watched.held_out:
                held_out = self.run.held_out_loss(
                    self.watched.held_out, progress and partial(progress, "held-out items")
                )
            if self.watched.guard:
                guard = fixed_loss(
                    self.run.model,
                    self.watched.guard,
                    micro_batch=self.run.settings.micro_batch,
                    ranks=self.run.ranks,
                    progress=progress and partial(progress, "guard items"),
                )
        self.measured.append(Measured(step, held_out, guard))
        if self.run.ranks.first:
            self.run.folder.show(step, self._named(self.measured[-1]))

    def _as_after(self, step: int) -> ExitStack:
        """Inside, the model computes as after ``step``, which is the present one or the start."""
        stack = ExitStack()
        stack.enter_context(torch.no_grad())
        start = step == 0
        stack.enter_context(self.run.policy.reference() if start else self.run.averaged())
        stack.enter_context(self.run.policy.gathered())
        return stack

    def _named(self, measured: Measured) -> dict[str, float]:
        sign = self.run.held_out_sign
        both = {
            self.run.held_out_name: None
            if measured.held_out is None
            else sign * measured.held_out + 0.0,
            "guard_loss": measured.guard,
        }
        return {name: value for name, value in both.items() if value is not None}

    def _sample(self, progress: PhaseCallback | None) -> None:
        run, done = self.run, kept_samples(self.run.folder.path)
        every = run.settings.samples_every or run.settings.evaluate_every
        steps = [0] if 0 not in done else []
        if run.step and run.step not in done and _due(run.step, every, run.settings.steps):
            steps.append(run.step)
        for step in steps if run.ranks.first else ():
            with self._as_after(step):
                pairs = answers(
                    run.model,
                    self.watched.samples[:MOST_SAMPLES],
                    seed=run.settings.seed,
                    micro_batch=run.settings.micro_batch,
                    progress=progress and partial(progress, "samples"),
                )
            folder = run.folder.path / "samples"
            part, whole = folder / f".step-{step:05}", folder / f"step-{step:05}"
            try:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
                for number, pair in enumerate(pairs, start=1):
                    pair.picture.save(part / f"{number}.png")
                    (part / f"{number}.txt").write_text(pair.text + "\n", encoding="utf-8")
                part.replace(whole)
                if self.watched.strip:
                    with replacing(folder / "strip.png") as file:
                        self.watched.strip(run.folder.path).save(file, "PNG")
            except OSError as error:
                raise InputError(
                    f"Samples could not be written to {folder} ({error.strerror or error}): make "
                    f"room there and resume. {run.folder.last_good}"
                ) from None

    def _write(self, adapter: LoRA, file: Path) -> None:
        run, losses = self.run, dict[str, float]()
        if self.measured and self.measured[-1].step == run.step:
            losses = self._named(self.measured[-1])
        about = {**run.metadata(), **base_metadata(run.model)}
        with run.averaged():
            save_adapter(file, adapter, {**about, **{n: f"{x:.6g}" for n, x in losses.items()}})

    def tidy(self) -> None:
        """Remove adapters that are no longer to be kept; called once the state is saved."""
        if self.kept and (self.measured or self.run.settings.keep_every):
            best, settings = self.best, self.run.settings
            self.kept.tidy(settings.keep_every, settings.keep_last, best and best.step)

    def refuse_leftovers(self) -> None:
        """Raises ``InputError`` where a run without a state left adapters."""
        if kept_adapters(self.run.folder.path):
            raise InputError(
                f"{self.run.folder.path} holds adapters of another run, whose state is gone: take "
                "another folder, or remove them."
            )

    def state(self) -> dict[str, Any]:
        return {
            "watched": [[origin_of(case) for case in cases] for cases in self._cases()],
            "measured": [list(astuple(each)) for each in self.measured],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`, of which an earlier version's run has nothing."""
        measured = [_measured(*each) for each in state.get("measured", ())]
        if measured and state["watched"] != self.state()["watched"]:
            raise InputError(
                f"{self.run.folder.state_file} was begun with other held-out or guard items: "
                "resume it with the same, or start another run elsewhere."
            )
        self.measured = measured
        if self.kept and self.run.ranks.first:
            self.kept.forget_after(self.run.step)

    def _cases(self) -> tuple[Sequence[Case], Sequence[Case]]:
        return self.watched.held_out, self.watched.guard


def _measured(step: Any, held_out: Any, guard: Any) -> Measured:
    """Raises ``ValueError`` for values of other types."""
    losses = [loss for loss in (held_out, guard) if loss is not None]
    if type(step) is not int or not all(isinstance(loss, float) for loss in losses):
        raise ValueError(f"it has measured {shown([step, held_out, guard])}")
    return Measured(step, held_out, guard)


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps

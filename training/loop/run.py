"""The loop of every run: steps that are logged, saved, and survive interruption.

All that is random is seeded by the step, so that a run resumed from its last state goes on exactly
as the uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.errors import InputError, NotFinite
from ...mmp_core.files import accessing, checked_path
from ...mmp_core.memory import OutOfMemory, is_out_of_memory
from ...mmp_core.model.transformer import MaskedDiffusionTransformer
from ...mmp_core.outside import check_kind, check_model
from ..cases import Case, Cases, EndlessCases
from ..data.apart import set_apart
from ..data.items import Counted, counted
from ..sft.held_out import fixed_loss
from ..weights.policies import Policy, check_weights, shapes_of
from ..weights.sharded import load_optimizer, whole, whole_optimizer
from .folder import RunFolder
from .optimizers import OPTIMIZERS, Average
from .ranks import Ranks
from .settings import RunSettings
from .signals import HeldSignals
from .watch import Watch, Watched

StepCallback = Callable[[int, dict[str, float]], Any]
"""Steps done and the metrics of the last one. May raise to interrupt: the run is then saved."""
PhaseCallback = Callable[[str, int, int], Any]
"""What a step is doing, and how much of that is done, of how much. May raise to interrupt."""


class Waiting(Exception):
    """The run is saved, and waits for a person: it goes on once it is resumed after that. What is
    wanted, in a sentence."""


class TrainingRun:
    """A policy's parameters and their optimizers, stepped and saved in ``folder``.

    ``ranks``: the processes that share the work; the first writes the files, from which all resume.
    ``watched``: what is measured and sampled between the steps; what is held out of ``cases`` is
    never trained on. ``about``: what headers of adapters say besides. ``callback(done, total)``:
    counts cases now and then where all are looked at, and may raise. A subclass says what a step
    is: :meth:`advance`.

    Raises ``InputError`` where there is nothing to train on, or nothing to watch by settings that
    need it.
    """

    kind: ClassVar[str]
    held_out_name: str = "held_out_loss"
    held_out_sign: int = 1
    """Of :meth:`held_out_loss`: the metric that is this times it."""

    def __init__(
        self,
        model: Model,
        cases: Cases,
        settings: RunSettings,
        folder: Path | str,
        *,
        policy: Policy,
        ranks: Ranks | None = None,
        watched: Watched | None = None,
        about: Mapping[str, str] | None = None,
        callback: Counted | None = None,
    ):
        check_model(model, "transformer", "layout")
        _check_parts(cases, settings, policy, ranks, watched, about, callback)
        if not isinstance(cases, EndlessCases) and not len(cases):
            raise InputError("There are no cases to train on: give a dataset that is not empty.")
        if settings.ema and policy.sharded:
            raise InputError("ema cannot average weights that are sharded over processes: take 0.")
        watched = watched or Watched()
        self.callback = callback
        self.cases, held_out = set_apart(cases, settings.held_out, watched.held_out, callback)
        self.model, self.policy, self.settings = model, policy, settings
        self.folder, self.ranks = RunFolder(checked_path(folder, "folder")), ranks or Ranks()
        self.parameters = dict(policy.named_parameters())
        self.optimizers = OPTIMIZERS[settings.optimizer](self.parameters, settings)
        self.average = Average(self.parameters, settings.ema) if settings.ema else None
        self.step, self.about = 0, dict(about or {})
        self._updating, self._signals = False, HeldSignals()
        self.watch = Watch(self, replace(watched, held_out=held_out))

    @cached_property
    def data(self) -> str:
        """A fingerprint of the cases."""
        if isinstance(self.cases, EndlessCases):
            return self.cases.fingerprint
        return fingerprint(self.cases, self.callback)

    def first_cases(self, count: int) -> list[Case]:
        """The first ``count`` cases, or all where there are fewer, to show samples of."""
        if not isinstance(self.cases, EndlessCases):
            count = min(count, len(self.cases))
        return [self.cases[number] for number in range(count)]

    def advance(self, progress: PhaseCallback | None = None) -> dict[str, float]:
        """One step; its metrics. The run is as before when this is interrupted by ``progress``."""
        raise NotImplementedError

    def held_out_loss(
        self, cases: Sequence[Case], progress: Callable[[int, int], Any] | None
    ) -> float:
        """How bad the model is at cases that it is not trained on; all processes call it alike."""
        return fixed_loss(
            self.model,
            cases,
            micro_batch=self.settings.micro_batch,
            ranks=self.ranks,
            progress=progress,
        )

    def averaged(self) -> AbstractContextManager:
        """Inside, the policy has its averaged weights, which are the result of a run with ema."""
        return self.average.applied() if self.average else nullcontext()

    def idle(self, forwards: int) -> int:
        """How many forwards beside its own ``forwards`` this process must run for the others."""
        return max(self.ranks.gather([forwards])) - forwards if self.policy.sharded else 0

    def extra_state(self) -> dict[str, Any]:
        """What a subclass saves beside parameters, optimizers and step."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`extra_state` gave. Raises ``InputError`` where it does not fit."""

    def train(
        self, callback: StepCallback | None = None, progress: PhaseCallback | None = None
    ) -> None:
        """Run to ``settings.steps``, or until patience ends. ``callback`` follows each step.

        The state is written every ``checkpoint_every`` steps, with each adapter that is kept, at
        the end, and when interrupted: by Ctrl-C (or another signal whose handler raises), once an
        update under way is done, or by what ``callback``, ``progress`` or the reward raise.
        Raises ``InputError``, with the last good state kept, where loss or gradient are not finite,
        memory runs out, or a file cannot be written; and :class:`Waiting`. May be called within
        ``inference_mode``, as hosts do, if the model was not loaded there.
        """
        check_kind(callback, Callable | None, "callback", "a function")
        check_kind(progress, Callable | None, "progress", "a function")
        with self._held():
            if not self.step and self.folder.saved_step is None:
                self.watch.refuse_leftovers()
                if self.ranks.first:
                    self.folder.forget_after(0)  # of a run that ended before it was ever saved
            try:
                with torch.inference_mode(False), torch.enable_grad():
                    self._train(callback, progress)
            finally:
                self.folder.close()

    def _held(self) -> AbstractContextManager:
        """:meth:`RunFolder.held` for all processes of the run."""
        return self.folder.held() if self.ranks.first else nullcontext()

    def _train(self, callback: StepCallback | None, progress: PhaseCallback | None) -> None:
        try:
            self.watch.look(progress)
            while self.step < self.settings.steps and not self.watch.out_of_patience:
                metrics = self._logged_step(progress)
                metrics |= self.watch.look(progress)
                if callback is not None:
                    callback(self.step, metrics)
                if self.step % self.settings.checkpoint_every == 0:
                    self.save()
        except DivergenceError:
            raise
        except NotFinite as error:
            raise DivergenceError(
                f"{error} If it worked before this run, lower learning_rate and resume. "
                f"{self.folder.last_good}"
            ) from None
        except BaseException as error:
            self._save_interrupted()
            if is_out_of_memory(error):
                raise OutOfMemory(
                    f"Memory ran out in step {self.step + 1}: use a smaller micro_batch, "
                    "gradient_checkpointing, fewer tokens or smaller pictures, and resume. "
                    f"{self.folder.last_good}"
                ) from error
            raise
        if self.folder.saved_step != self.step:
            self.save()

    def _logged_step(self, progress: PhaseCallback | None) -> dict[str, float]:
        began = time.perf_counter()
        try:
            metrics = self.advance(progress)
            metrics |= {"step": self.step, "seconds": time.perf_counter() - began}
            metrics["learning_rate"] = self.settings.learning_rate_at(self.step - 1)
            if self.ranks.first:
                self.folder.log(metrics)
        finally:
            self._signals.release()
        return metrics

    def _save_interrupted(self) -> None:
        """Save unless an update was cut in two, the state is saved already, or it is spread over
        processes that may not have stopped at the same place."""
        self._forget_gradients()
        if not (self._updating or self.policy.sharded or self.folder.saved_step == self.step):
            self.save()

    def apply_gradients(self, loss: float) -> float:
        """Sum the gradients over processes, clip and step; their norm before clipping.

        ``loss``: over all processes, for the message where it or the gradient is not finite.
        """
        self.ranks.sum_gradients(self.parameters.values())
        clipped = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm)
        norm = float(whole(clipped))
        if not math.isfinite(norm + loss):
            self._forget_gradients()
            raise DivergenceError(
                f"Step {self.step + 1} is not finite (loss {loss:g}, gradient norm {norm:g}): "
                f"lower learning_rate and resume. {self.folder.last_good}"
            )
        self._signals.hold()  # until the step is logged
        self._updating = True
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate_at(self.step)
            optimizer.step()
        self._forget_gradients()
        return norm

    def _forget_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def commit(self) -> None:
        """The step is done, as a whole."""
        self._updating = True
        self.step += 1
        if self.average:
            self.average.update(self.step)
        self._updating = False

    def save(self) -> None:
        """Write the state, whole or not at all. Raises ``InputError`` where it cannot be."""
        state = {
            "kind": self.kind,
            "step": self.step,
            "settings": asdict(self.settings),
            "data": self.data,
            "start": self.policy.start,
            "scale_of_adapter": self.policy.scale,
            "policy": dict(self.policy.state_dict()),
            "optimizers": [whole_optimizer(optimizer) for optimizer in self.optimizers],
            "average": self.average.state_dict() if self.average else {},
            **self.watch.state(),
            **self.extra_state(),
        }
        if self.ranks.first:
            self.folder.write(state)
        self.folder.saved_step = self.step
        if self.ranks.first:
            self.watch.tidy()

    def resume(self, callback: Counted | None = None) -> bool:
        """Continue from the folder's state; ``False`` without one. ``callback`` counts the lines of
        its log, and may raise.

        Raises ``InputError`` where settings, data or policy are not those it was begun with, or
        the state is damaged.
        """
        with accessing():
            if not self.folder.state_file.is_file():
                return False
        with self._held():
            state = self.folder.read("cpu") or {}
            with self.folder.taking_over():
                self._take_over(state)
            if self.ranks.first:
                self.folder.forget_after(self.step, callback)
        return True

    def _take_over(self, state: dict[str, Any]) -> None:
        self._check_begun_alike(state)
        self.load_extra_state(state)
        check_weights(state["policy"], "it")
        self.policy.load_state_dict(state["policy"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)
        if self.average:
            if shapes_of(self.average.state_dict()) != shapes_of(state["average"]):
                raise ValueError("its average is of other weights")
            check_weights(state["average"], "its average")
            self.average.load_state_dict(state["average"])
        self.step = state["step"]
        self.watch.load_state(state)

    def _check_begun_alike(self, state: dict[str, Any]) -> None:
        if state.get("kind") != self.kind:
            raise self._refusal(f"is of another kind of training ({state.get('kind')})")
        if "optimizers" not in state:
            raise self._refusal("was begun by an earlier version")
        fixed = [f.name for f in fields(self.settings) if f.name not in self.settings.FREE]
        begun = {f.name: f.default for f in fields(self.settings)} | state["settings"]
        self.folder.refuse_changes(begun, asdict(self.settings), fixed)
        if state["data"] != self.data:
            raise self._refusal("was begun on other data")
        if state["start"] != self.policy.start:
            raise self._refusal("was begun with another adapter to train further")
        if state.get("scale_of_adapter", 1.0) != self.policy.scale:
            raise self._refusal("was begun with an adapter of another scale (rslora)")
        if shapes_of(self.policy.state_dict()) != shapes_of(state["policy"]):
            raise self._refusal("was begun with other layers or another rank")

    def _refusal(self, reason: str) -> InputError:
        return InputError(
            f"{self.folder.state_file} {reason}: resume it with the same, or start another run "
            "elsewhere."
        )

    def metadata(self) -> dict[str, str]:
        """The header of a trained adapter."""
        return {
            "training": self.kind,
            "steps": str(self.step),
            "settings": json.dumps(asdict(self.settings)),
            "data": self.data,
            "processes": str(self.ranks.count),
            **self.about,
        }


def _check_parts(
    cases: Any, settings: Any, policy: Any, ranks: Any, watched: Any, about: Any, callback: Any
) -> None:
    """Raise ``InputError`` for what no run is made of."""
    for value, kind, name, expected in (
        (cases, Sequence | EndlessCases, "cases", "tokenised cases"),
        (settings, RunSettings, "settings", "settings of a run"),
        (policy, Policy, "policy", "what is trained of the model"),
        (ranks, Ranks | None, "ranks", "the processes of the run"),
        (watched, Watched | None, "watched", "what is looked at between steps"),
        (about, Mapping | None, "about", "texts by their names"),
    ):
        check_kind(value, kind, name, expected)
    check_kind(callback, Callable | None, "callback", "a function")
    if isinstance(cases, Sequence) and len(cases):
        check_kind(cases[0], Case, "cases", "tokenised cases")


class DivergenceError(InputError):
    """Loss or gradient are not finite."""


def fingerprint(cases: Sequence[Case], callback: Counted | None = None) -> str:
    """SHA-256 of the cases' names, instructions and input pictures (as codes), in order."""
    digest = hashlib.sha256()
    for case in counted(cases, callback):
        digest.update(f"{case.name}\0{case.instruction}\0".encode())
        if case.prompt.image is not None:
            digest.update(case.prompt.image.cpu().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def recomputing(transformer: MaskedDiffusionTransformer, enabled: bool) -> Iterator[None]:
    """Inside, if ``enabled``, the backward computes the blocks' activations again."""
    blocks = list(cast(nn.ModuleList, transformer.layers["blocks"])) if enabled else []
    for block in blocks:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward

"""What training by rewards and training on targets have in common: steps that survive.

All that is random is seeded by the step, so that a run resumed from its last state goes on exactly
as the uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.errors import InputError
from ...mmp_core.memory import OutOfMemory, is_out_of_memory
from ...mmp_core.model.transformer import MaskedDiffusionTransformer
from ..cases import Case
from ..weights.sharded import ShardedWeights, load_optimizer, whole, whole_optimizer
from .folder import RunFolder
from .ranks import Ranks
from .settings import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..weights.policies import Policy

Callback = Callable[[int, dict[str, float]], Any]
"""Steps done and the metrics of the last one. May raise to interrupt: the run is then saved."""
Progress = Callable[[str, int, int], Any]
"""What a step is doing, and how much of that is done, of how much. May raise to interrupt."""


class PolicyRun:
    """A policy's parameters and their optimizer (AdamW), stepped and saved in ``folder``.

    ``accelerator``: spreads the work over processes (``accelerate launch``); the first writes the
    files, from which all resume. A subclass says what a step is: :meth:`advance`.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        model: Model,
        cases: Sequence[Case],
        settings: RunSettings,
        folder: Path | str,
        *,
        policy: Policy,
        accelerator: Accelerator | None = None,
    ):
        if not len(cases):
            raise InputError("There are no cases to train on: give a dataset that is not empty.")
        self.model, self.cases, self.settings, self.policy = model, cases, settings, policy
        self.folder, self.ranks = RunFolder(Path(folder)), Ranks(accelerator)
        self.parameters = dict(policy.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
        )
        self.sharded = isinstance(policy, ShardedWeights)
        self.step = 0
        self._updating = False

    @cached_property
    def data(self) -> str:
        """The cases' :func:`fingerprint`."""
        return fingerprint(self.cases)

    def advance(self, progress: Progress | None = None) -> dict[str, float]:
        """One step; its metrics. The run is as before when this is interrupted by ``progress``."""
        raise NotImplementedError

    def gathered(self) -> AbstractContextManager:
        """Inside, processes may run unequal numbers of forwards."""
        return self.policy.gathered() if self.sharded else nullcontext()

    def recomputing(self) -> AbstractContextManager:
        """Inside, forwards for a backward keep little, if the settings say so."""
        return recomputing(self.model.transformer, self.settings.gradient_checkpointing)

    def idle(self, forwards: int) -> int:
        """How many forwards beside its own ``forwards`` this process must run for the others."""
        return max(self.ranks.gather([forwards])) - forwards if self.sharded else 0

    def drawn(self, count: int) -> list[tuple[int, Case]]:
        """This process's share of the ``count`` cases of the present step: every n-th.

        Each with its number among all of them. Drawn without replacement from all cases, in
        another order each time round.
        """
        found = []
        for number in range(self.ranks.index, count, self.ranks.count):
            epoch, place = divmod(self.step * count + number, len(self.cases))
            order = random.Random(f"{self.settings.seed} order {epoch}")
            places = order.sample(range(len(self.cases)), len(self.cases))
            found.append((number, self.cases[places[place]]))
        return found

    def extra_state(self) -> dict[str, Any]:
        """What a subclass saves beside parameters, optimizer and step."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`extra_state` gave. Raises ``InputError`` where it does not fit."""

    def train(self, callback: Callback | None = None, progress: Progress | None = None) -> None:
        """Run to ``settings.steps``. ``callback`` follows each step.

        A checkpoint is written every ``checkpoint_every`` steps, at the end, and when interrupted:
        by Ctrl-C, or by anything that ``callback``, ``progress`` or the reward raise.
        Raises ``InputError``, with the last good state kept, where loss or gradient are not finite,
        memory runs out, or a file cannot be written. May be called within ``inference_mode``, as
        hosts do, if the model was not loaded there.
        """
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode(False), torch.enable_grad():
            self._train(callback, progress)

    def _train(self, callback: Callback | None, progress: Progress | None) -> None:
        try:
            while self.step < self.settings.steps:
                self._logged_step(callback, progress)
                if self.step % self.settings.checkpoint_every == 0:
                    self.save()
        except DivergenceError:
            raise
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

    def _logged_step(self, callback: Callback | None, progress: Progress | None) -> None:
        began = time.perf_counter()
        metrics = self.advance(progress)
        metrics |= {"step": self.step, "seconds": time.perf_counter() - began}
        metrics["learning_rate"] = self.settings.learning_rate_at(self.step - 1)
        if self.ranks.first:
            self.folder.log(metrics)
        if callback is not None:
            callback(self.step, metrics)

    def _save_interrupted(self) -> None:
        """Save unless an update was cut in two, the state is saved already, or it is spread over
        processes that may not have stopped at the same place."""
        self.optimizer.zero_grad(set_to_none=True)
        if not (self._updating or self.sharded or self.folder.saved_step == self.step):
            self.save()

    def apply_gradients(self, loss: float) -> float:
        """Sum the gradients over processes, clip and step; their norm before clipping.

        ``loss``: over all processes, for the message where it or the gradient is not finite.
        """
        self.ranks.sum_gradients(self.parameters.values())
        clipped = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm)
        norm = float(whole(clipped))
        if not math.isfinite(norm + loss):
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergenceError(
                f"Step {self.step + 1} is not finite (loss {loss:g}, gradient norm {norm:g}): "
                f"lower learning_rate and resume. {self.folder.last_good}"
            )
        self._updating = True
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def commit(self) -> None:
        """The step is done, as a whole."""
        self.step += 1
        self._updating = False

    def save(self) -> None:
        """Write the state, whole or not at all. Raises ``InputError`` where it cannot be."""
        state = {
            "kind": self.kind,
            "step": self.step,
            "settings": asdict(self.settings),
            "data": self.data,
            "policy": dict(self.policy.state_dict()),
            "optimizer": whole_optimizer(self.optimizer),
            **self.extra_state(),
        }
        if self.ranks.first:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            self.folder.write(state)
        self.folder.saved_step = self.step

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; ``False`` when there is none.

        Raises ``InputError`` where settings, data or policy are not those it was begun with.
        """
        state = self.folder.read("cpu")
        if state is None:
            return False
        if state.get("kind") != self.kind:
            raise InputError(
                f"{self.folder.state_file} is of another kind of training ({state.get('kind')}): "
                "start this one elsewhere."
            )
        fixed = [f.name for f in fields(self.settings) if f.name not in self.settings.FREE]
        self.folder.refuse_changes(state["settings"], asdict(self.settings), fixed)
        if state["data"] != self.data:
            raise InputError(
                f"{self.folder.state_file} was begun on other data: resume it with the same, or "
                "start another run elsewhere."
            )
        self._check_policy(state["policy"])
        self.load_extra_state(state)
        self.policy.load_state_dict(state["policy"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.step = state["step"]
        if self.ranks.first:
            self.folder.forget_after(self.step)
        return True

    def _check_policy(self, saved: dict[str, Tensor]) -> None:
        own = self.policy.state_dict()
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in saved.items()}:
            raise InputError(
                f"{self.folder.state_file} was begun with other layers or another rank: resume it "
                "with the same, or start another run elsewhere."
            )

    def metadata(self) -> dict[str, str]:
        """What a trained adapter tells about its making."""
        return {
            "training": self.kind,
            "steps": str(self.step),
            "settings": json.dumps(asdict(self.settings)),
            "data": self.data,
            "processes": str(self.ranks.count),
        }


class DivergenceError(InputError):
    """Loss or gradient are not finite."""


def fingerprint(cases: Sequence[Case]) -> str:
    """SHA-256 of the cases' names, instructions and input pictures (as codes), in order."""
    told = hashlib.sha256()
    for case in cases:
        told.update(f"{case.name}\0{case.instruction}\0".encode())
        if case.prompt.image is not None:
            told.update(case.prompt.image.cpu().numpy().tobytes())
    return told.hexdigest()


@contextmanager
def recomputing(transformer: MaskedDiffusionTransformer, enabled: bool) -> Iterator[None]:
    """Inside, the blocks' activations are not kept for the backward but computed again."""
    blocks = list(transformer.layers["blocks"]) if enabled else []
    for block in blocks:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward

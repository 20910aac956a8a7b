"""Direct preference optimisation of a policy on picked and rejected answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.errors import InputError
from ...mmp_core.outside import check_kind
from ..cases import Case
from ..data.apart import origin_of
from ..data.items import counted
from ..loop.draw import draw_cases
from ..loop.run import PhaseCallback, TrainingRun, recomputing
from ..weights.policies import Policy
from .loss import Comparison, draw_masks, preference_loss
from .settings import DPOSettings

HELD_OUT_MASKS = 32


class DPORun(TrainingRun):
    """A DPO run in ``folder``: see :class:`TrainingRun`, which takes ``options``, too. Every case
    needs its target and an answer that was rejected for it; see :mod:`~.loss` for how likely they
    are. Held-out cases are measured by the same loss, which is log 2 at the start.
    """

    kind = "dpo"
    settings: DPOSettings

    def __init__(
        self,
        model: Model,
        cases: Sequence[Case],
        settings: DPOSettings,
        folder: Path | str,
        *,
        policy: Policy,
        **options: Any,
    ):
        check_kind(settings, DPOSettings, "settings", "settings of DPO")
        super().__init__(model, cases, settings, folder, policy=policy, **options)
        if policy.sharded:
            raise InputError("DPO cannot train weights that are sharded: train an adapter.")
        if settings.batch_size < self.ranks.count:
            raise InputError(
                f"The batch of {settings.batch_size} is for {self.ranks.count} processes: give "
                "each at least one comparison."
            )
        for case in (*cases, *self.watch.watched.guard, *self.watch.watched.held_out):
            case.needed_target()

    @cached_property
    def data(self) -> str:
        digest = hashlib.sha256(super().data.encode())
        for case in counted(self.first_cases(2**31), self.callback):
            for answer in (case.target, case.rejected):
                for tokens in (answer.text, answer.image) if answer else ():
                    digest.update(tokens.cpu().numpy().tobytes())
        return digest.hexdigest()

    def advance(self, progress: PhaseCallback | None = None) -> dict[str, float]:
        settings, sums = self.settings, [0.0, 0.0, 0.0]
        drawn = draw_cases(
            self.cases,
            self.step,
            settings.batch_size,
            seed=settings.seed,
            rank=self.ranks.index,
            ranks=self.ranks.count,
        )
        with recomputing(self.model.transformer, settings.gradient_checkpointing):
            for done, (number, case) in enumerate(drawn):
                if progress:
                    progress("update", done, len(drawn))
                seed = (settings.seed * 1_000_003 + self.step) * 1_009 + number
                margin = self._backward(self._compared(case, settings.masks, seed % 2**63))
                loss = float(preference_loss(torch.tensor(margin), settings.beta))
                sums = [a + b for a, b in zip(sums, (loss, margin, margin > 0), strict=True)]
        loss, margin, right = (x / settings.batch_size for x in self.ranks.sum(sums))
        norm = self.apply_gradients(loss)
        self.commit()
        return {"loss": loss, "margin": margin, "preferred": right, "grad_norm": norm}

    def held_out_loss(
        self, cases: Sequence[Case], progress: Callable[[int, int], Any] | None
    ) -> float:
        """The mean loss with masks that are always the same."""
        total, own = 0.0, list(enumerate(cases))[self.ranks.index :: self.ranks.count]
        for number, case in own:
            if progress:
                progress(number, len(cases))
            digest = hashlib.sha256(f"{origin_of(case)} {case.name}".encode()).digest()
            seed = int.from_bytes(digest[:8], "little") >> 1
            # before the first step the policy is the reference already
            compared = self._compared(case, HELD_OUT_MASKS, seed)
            margin = self._margin(compared) if self.watch.measured else 0.0
            total += float(preference_loss(torch.tensor(margin), self.settings.beta))
        (total,) = self.ranks.sum([total])
        return total / len(cases)

    def _compared(self, case: Case, count: int, seed: int) -> list[Comparison]:
        masks = draw_masks(case.prompt.initial, count, torch.Generator().manual_seed(seed))
        compared = Comparison.of(case, masks).to(self.model.device)
        return compared.split(self.settings.micro_batch)

    @torch.no_grad()
    def _margin(self, parts: Sequence[Comparison]) -> float:
        """How much more the policy than the reference prefers the picked answer."""
        policy = sum(float(part.log_ratios(self.model).sum()) for part in parts)
        with self.policy.reference():
            return policy - sum(float(part.log_ratios(self.model).sum()) for part in parts)

    def _backward(self, parts: Sequence[Comparison]) -> float:
        """Add the gradient of one comparison's loss; the margin.

        The loss depends on the whole margin, so that this is computed first: then each part's
        gradient is that of its sum times the loss's by the margin.
        """
        value = self._margin(parts)
        margin = torch.tensor(value, requires_grad=True)
        (slope,) = torch.autograd.grad(preference_loss(margin, self.settings.beta), margin)
        for part in parts:
            (part.log_ratios(self.model).sum() * float(slope) / self.settings.batch_size).backward()
        return value

"""SFT of a policy on cases with targets: the losses of :mod:`~.loss`, the steps of ParaRL."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.errors import InputError
from ..cases import Case
from ..loop.run import PolicyRun, Progress
from .loss import Condition, Example, alike, draw_conditions, draw_masks, masked_losses, stack
from .settings import SFTSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..weights.policies import Policy


@dataclass(frozen=True)
class Piece:
    """Examples of one forward, with what is masked of them. ``share``: what one of them counts."""

    example: Example
    condition: Condition
    masks: tuple[Tensor, ...]
    share: float


class FinetuneRun(PolicyRun):
    """An SFT run in ``folder``: see :class:`PolicyRun`. Every case needs its target.

    A case's masks depend on seed, step and place in the batch alone, so that neither the
    micro-batch nor the number of processes matters.
    """

    kind = "sft"
    settings: SFTSettings

    def __init__(
        self,
        model: Model,
        cases: Sequence[Case],
        settings: SFTSettings,
        folder: Path | str,
        *,
        policy: Policy,
        accelerator: Accelerator | None = None,
    ):
        super().__init__(model, cases, settings, folder, policy=policy, accelerator=accelerator)
        if settings.batch_size < self.ranks.count:
            raise InputError(
                f"The batch of {settings.batch_size} is for {self.ranks.count} processes: give "
                "each at least one case."
            )
        if aimless := [case.name for case in cases if case.target is None]:
            raise InputError(
                f"{aimless[0]} has no target, which SFT needs: give every case its text and "
                "picture, or train by rewards."
            )

    @cached_property
    def data(self) -> str:
        told = hashlib.sha256(super().data.encode())
        for case in self.cases:
            for tokens in (case.target.text, case.target.image):
                told.update(tokens.cpu().numpy().tobytes())
        return told.hexdigest()

    def advance(self, progress: Progress | None = None) -> dict[str, float]:
        pieces, sums = self._pieces(), [0.0, 0.0]
        for number, piece in enumerate(pieces):
            if progress:
                progress("update", number, len(pieces))
            example = piece.example.to(self.model.device)
            with self.recomputing():
                losses = masked_losses(
                    self.model.transformer,
                    self.model.layout,
                    example,
                    piece.condition,
                    *piece.masks,
                )
                ((losses.text + losses.image) * piece.share).backward()
            for kind, loss in enumerate((losses.text, losses.image)):
                sums[kind] += float(loss.detach()) * piece.share
        text, image = self.ranks.sum(sums)
        norm = self.apply_gradients(text + image)
        self.commit()
        return {"loss": text + image, "text_loss": text, "image_loss": image, "grad_norm": norm}

    def _pieces(self) -> list[Piece]:
        """This process's share of the batch, cut to the micro-batch."""
        size, pieces = self.settings.micro_batch, []
        examples, conditions, masks = self._batch()
        for places, condition in alike(examples, conditions):
            for part in (places[i : i + size] for i in range(0, len(places), size)):
                pieces.append(
                    Piece(
                        stack([examples[p] for p in part], condition),
                        condition,
                        tuple(torch.cat([masks[p][kind] for p in part]) for kind in range(2)),
                        1 / self.settings.batch_size,
                    )
                )
        return pieces + [replace(pieces[0], share=0.0)] * self.idle(len(pieces))

    def _batch(self) -> tuple[list[Example], list[Condition], list[tuple]]:
        settings = self.settings
        examples, conditions, masks = [], [], []
        for number, case in self.drawn(settings.batch_size):
            seed = (settings.seed * 1_000_003 + self.step) * 1_009 + number
            rng = torch.Generator().manual_seed(seed % 2**63)
            conditions += draw_conditions(
                1, rng, text=settings.drop_text, image=settings.drop_image, both=settings.drop_both
            )
            masks.append(draw_masks(case.target, rng))
            examples.append(Example(case.prompt, case.target))
        return examples, conditions, masks

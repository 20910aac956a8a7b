"""What a step of SFT trains on: cases with masks, those of one shape stacked without padding."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...mmp_core.state import Prompt, TokenState
from ..cases import Case, Cases
from ..data.items import Counted, counted
from ..loop.draw import draw_cases
from .loss import Condition, draw_condition, draw_masks
from .settings import SFTSettings


@dataclass(frozen=True)
class MicroBatch:
    """Cases of one forward.

    ``target``: the answers without masks. ``text_mask`` (B, T), ``image_mask`` (B, H·W): bool on
    the CPU, what is masked of them. ``image_weight``: (B, H, W) float or ``None``.
    ``condition``: what is dropped of the prompts.
    """

    prompt: Prompt
    target: TokenState
    image_weight: Tensor | None
    condition: Condition
    text_mask: Tensor
    image_mask: Tensor

    def to(self, device: torch.device | str) -> MicroBatch:
        """All but the masks on ``device``."""
        weight = None if self.image_weight is None else self.image_weight.to(device)
        return replace(
            self, prompt=self.prompt.to(device), target=self.target.to(device), image_weight=weight
        )


def masked(case: Case, settings: SFTSettings, seed: int) -> MicroBatch:
    """``case`` with masks and condition drawn from ``seed``.

    Its instruction is the form of it that the model gets.
    """
    target = case.needed_target()
    rng = torch.Generator().manual_seed(seed)
    condition = draw_condition(
        rng, text=settings.drop_text, image=settings.drop_image, both=settings.drop_both
    )
    prompt = case.prompt
    if prompt.image is None:
        condition = Condition(condition.drop_text)
    words = prompt.unconditional if condition.drop_text else prompt.instruction
    prompt = replace(prompt, instruction=words, unconditional=words, initial=target)
    masks = draw_masks(target, rng)
    return MicroBatch(prompt, target, case.image_weight, condition, *masks)


def group_by_shape(batches: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
    """Those that can be stacked, in the order of their first."""
    groups = defaultdict(list)
    for batch in batches:
        prompt = batch.prompt
        key = (
            batch.condition,
            prompt.task,
            prompt.instruction.shape,
            *(None if codes is None else codes.shape for codes in (prompt.image, prompt.reference)),
            batch.target.text.shape,
            batch.target.image.shape,
            batch.image_weight is None,
        )
        groups[key].append(batch)
    return list(groups.values())


def stack(batches: Sequence[MicroBatch]) -> MicroBatch:
    """Micro-batches of one shape and condition as one."""
    prompt = Prompt.stack([batch.prompt for batch in batches])
    weights = [batch.image_weight for batch in batches if batch.image_weight is not None]
    return MicroBatch(
        prompt,
        prompt.initial,
        torch.cat(weights) if weights else None,
        batches[0].condition,
        torch.cat([batch.text_mask for batch in batches]),
        torch.cat([batch.image_mask for batch in batches]),
    )


class Windows(Dataset[list[list[MicroBatch]]]):
    """``windows[w]``: this process's micro-batches of each of the steps from ``w · window`` on.

    The cases of a window are grouped by shape and cut into micro-batches, which are shuffled where
    there are several steps to share them. A case's masks depend on its step and its number there
    alone, so that neither micro-batch nor number of processes matters to them. ``rehearsed``: what
    ``settings.rehearsal`` is a share of. ``callback(done, total)`` counts the cases of a step now
    and then, and may raise.
    """

    def __init__(
        self,
        cases: Cases,
        settings: SFTSettings,
        rank: int = 0,
        ranks: int = 1,
        rehearsed: Sequence[Case] = (),
        callback: Counted | None = None,
    ):
        self.cases, self.settings, self.rank, self.ranks = cases, settings, rank, ranks
        self.rehearsed, self.callback = rehearsed, callback

    def __getitem__(self, index: int) -> list[list[MicroBatch]]:
        window = self.settings.window
        singles = [
            single
            for step in range(index * window, (index + 1) * window)
            for single in self._singles(step)
        ]
        share = len(singles) / window
        size = min(self.settings.micro_batch, max(1, int(share)))
        parts = [
            stack(group[start : start + size])
            for group in group_by_shape(singles)
            for start in range(0, len(group), size)
        ]
        if window > 1:
            random.Random(f"{self.settings.seed} window {index} {self.rank}").shuffle(parts)
        steps: list[list[MicroBatch]] = [[] for _ in range(window)]
        placed = 0
        for part in parts:
            steps[min(int(placed / share), window - 1)].append(part)
            placed += part.target.batch
        return steps

    def _singles(self, step: int) -> list[MicroBatch]:
        settings, size = self.settings, self.settings.batch_size
        again = max(1, round(settings.rehearsal * size)) if self.rehearsed else 0
        first = (settings.seed * 1_000_003 + step) * 1_009
        singles = list[MicroBatch]()
        for cases, before, count in (
            (self.cases, 0, size - again),
            (self.rehearsed, size - again, again),
        ):
            if count:
                drawn = draw_cases(
                    cases, step, count, seed=settings.seed, rank=self.rank, ranks=self.ranks
                )
                singles += [
                    masked(case, settings, (first + before + number) % 2**63)
                    for number, case in counted(drawn, self.callback)
                ]
        return singles

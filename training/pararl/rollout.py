"""Rollouts of ParaRL: groups of answers to one prompt, kept at the steps that are scored.

Groups whose prompts have equal shapes are denoised together. Of each group's trajectory s steps are
drawn uniformly, the same for all its rollouts. Every step of the plan reveals tokens of every
rollout, so each drawn one has something to learn from.

The likelihood of a revealed token is that of the conditional branch, at the sampling temperature
and among the choices that the sampler has. With guidance this is the likelihood of the unguided
policy, which is the one that is trained. Which positions are revealed is not part of it (as in the
paper's objective, and in TraceRL).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.pipeline import decode_image, decode_text
from ...mmp_core.sampler.loop import denoise
from ...mmp_core.sampler.positions import masked_counts
from ...mmp_core.sampler.settings import SamplerSettings
from ...mmp_core.state import MASKED, Prompt, Step, TokenState
from ...mmp_core.variants.base import UNDECIDED
from ..cases import Case, Pair

Progress = Callable[[int, int], Any]
"""Steps done and steps to do. May raise to interrupt."""


@dataclass(frozen=True)
class Group:
    """One prompt to be answered ``len(seeds)`` times.

    ``number``: its place among all groups of the training step, whichever process rolls it out.
    ``seeds``: one per rollout. ``choice``: seeds the drawing of the scored steps.
    """

    number: int
    case: Case
    seeds: tuple[int, ...]
    choice: str

    @classmethod
    def of(cls, number: int, case: Case, size: int, seed: str) -> Group:
        """``seed`` names run and step: with ``number`` it decides everything random."""
        rng = random.Random(f"{seed} {number}")
        seeds = tuple(rng.getrandbits(63) for _ in range(size))
        return cls(number, case, seeds, f"{seed} {number} steps")

    def drawn_steps(self, count: int, total: int) -> list[int]:
        """``count`` of ``total`` steps (or all, where there are fewer), ascending."""
        return sorted(random.Random(self.choice).sample(range(total), min(count, total)))


@dataclass(frozen=True)
class Moments:
    """Rollouts at steps: M of them, whatever rollout and step each belongs to.

    ``state``, ``after``: what was decided before and after the step. ``text_revealed`` (M, T),
    ``image_revealed`` (M, H, W): bool. ``index``: (M,) int64, the step's number. ``finite``: (M,)
    bool, whether the model's confidence was a number throughout.
    """

    prompt: Prompt
    state: TokenState
    after: TokenState
    text_revealed: Tensor
    image_revealed: Tensor
    index: Tensor
    finite: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | Tensor) -> Moments:
        return Moments(
            self.prompt[rows],
            self.state[rows],
            self.after[rows],
            self.text_revealed[rows],
            self.image_revealed[rows],
            self.index[rows],
            self.finite[rows],
        )

    @classmethod
    def join(cls, parts: Sequence[Moments]) -> Moments:
        def states(name: str) -> TokenState:
            found = [getattr(p, name) for p in parts]
            return TokenState(
                torch.cat([s.text for s in found]), torch.cat([s.image for s in found])
            )

        names = ("text_revealed", "image_revealed", "index", "finite")
        return cls(
            Prompt.stack([p.prompt for p in parts]),
            states("state"),
            states("after"),
            *(torch.cat([getattr(p, name) for p in parts]) for name in names),
        )


@dataclass(frozen=True)
class Rollouts:
    """Groups of equal shape, rolled out.

    ``moments``: in the order group, drawn step, rollout: M = groups · steps · size. ``final``: the
    answers, in the order group, rollout. ``total_steps``: of the denoising run.
    """

    groups: tuple[Group, ...]
    size: int
    moments: Moments
    final: TokenState
    total_steps: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, drawn steps, size)."""
        return len(self.groups), len(self.moments) // (len(self.groups) * self.size), self.size

    def cases(self, per_group: int) -> list[Case]:
        """Each group's case so many times."""
        return [group.case for group in self.groups for _ in range(per_group)]


def _joined(states: Sequence[TokenState]) -> TokenState:
    return TokenState(torch.cat([s.text for s in states]), torch.cat([s.image for s in states]))


def alike(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups in lists that can be denoised together: equal shapes and as much to decide."""
    lists = defaultdict(list)
    for group in groups:
        prompt = group.case.prompt
        key = (
            prompt.instruction.shape,
            prompt.unconditional.shape,
            None if prompt.image is None else prompt.image.shape,
            prompt.initial.text.shape,
            prompt.initial.grid,
            masked_counts(prompt.initial.text),
            masked_counts(prompt.initial.image),
        )
        lists[key].append(group)
    return list(lists.values())


@torch.no_grad()
def roll_out(
    model: Model,
    groups: Sequence[Group],
    settings: SamplerSettings,
    *,
    drawn: int,
    micro_batch: int,
    progress: Progress | None = None,
) -> Rollouts:
    """Denoise ``groups`` (all :func:`alike`), at most ``micro_batch`` rollouts at a time.

    ``drawn``: steps kept per group.
    """
    size = len(groups[0].seeds)
    seeds = [seed for group in groups for seed in group.seeds]
    prompt = Prompt.stack([group.case.prompt for group in groups]).repeat(size).to(model.device)
    kept: list[Moments] = []
    places: list[Tensor] = []
    finals: list[TokenState] = []
    for start in range(0, len(seeds), micro_batch):
        rows = range(start, min(start + micro_batch, len(seeds)))
        keeper = _Keeper(groups, prompt[start : rows.stop], rows, drawn, progress)
        own = replace(settings, seed=seeds[start : rows.stop])
        trajectory = denoise(model, keeper.prompt, own, callback=keeper, record=0)
        kept += keeper.moments
        places += keeper.places
        finals.append(trajectory.final)
    steps = min(drawn, trajectory.total_steps)
    group, slot, rollout = torch.tensor(places).unbind(dim=1)
    order = ((group * steps + slot) * size + rollout).argsort()
    moments = Moments.join(kept)[order.to(model.device)]
    return Rollouts(tuple(groups), size, moments, _joined(finals), trajectory.total_steps)


class _Keeper:
    """The callback of one denoising run: keeps of each rollout its group's drawn steps.

    ``rows``: which of all rollouts the run's are. ``places``: (group, drawn step, rollout) of each
    kept moment.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        prompt: Prompt,
        rows: range,
        drawn: int,
        progress: Progress | None,
    ):
        self.groups, self.prompt, self.rows = groups, prompt, rows
        self.drawn, self.progress = drawn, progress
        self.size = len(groups[0].seeds)
        self.moments: list[Moments] = []
        self.places: list[tuple[int, int, int]] = []

    def __call__(self, index: int, total: int, step: Step) -> None:
        wanted = []
        for place, row in enumerate(self.rows):
            group, rollout = divmod(row, self.size)
            steps = self.groups[group].drawn_steps(self.drawn, total)
            if index in steps:
                wanted.append(place)
                self.places.append((group, steps.index(index), rollout))
        if wanted:
            self.moments.append(_moments(self.prompt, step, wanted))
        if self.progress:
            everyone = len(self.groups) * self.size
            self.progress(self.rows.start * total + (index + 1) * len(self.rows), everyone * total)


def _moments(prompt: Prompt, step: Step, rows: list[int]) -> Moments:
    at = torch.tensor(rows, device=step.text_revealed.device)
    confidence = torch.cat((step.text_confidence, step.image_confidence.flatten(1)), dim=1)
    return Moments(
        prompt[at],
        step.state[at],
        step.after[at],
        step.text_revealed[at],
        step.image_revealed[at],
        torch.full_like(at, step.index),
        confidence[at].isfinite().all(dim=1),
    )


def trajectory_pairs(model: Model, rollouts: Rollouts, *, micro_batch: int) -> list[Pair]:
    """One pair per moment: what is decided after the step, and for undecided image codes the
    model's likeliest, asked anew given just that.

    The sampler's own guess was made before the step, at random: it cannot agree with what the step
    decided, so a reward of it says next to nothing about the step.
    """
    _, steps, size = rollouts.shape
    moments = rollouts.moments
    parts = [moments[i : i + micro_batch] for i in range(0, len(moments), micro_batch)]
    guess = torch.cat([_likeliest_picture(model, part) for part in parts])
    progress = [(index + 1) / rollouts.total_steps for index in moments.index.tolist()]
    shown = TokenState(moments.after.text, guess)
    return _pairs(model, shown, rollouts.cases(steps * size), progress, micro_batch)


def final_pairs(model: Model, rollouts: Rollouts, *, micro_batch: int) -> list[Pair]:
    """One pair per rollout, of its final state."""
    cases = rollouts.cases(rollouts.size)
    return _pairs(model, rollouts.final, cases, [1.0] * len(cases), micro_batch)


def sample_pairs(model: Model, rollouts: Rollouts, count: int) -> list[Pair]:
    """Final pairs of the first rollouts of the first ``count`` groups."""
    cases = rollouts.cases(1)[:count]
    first = rollouts.final[:: rollouts.size][:count]
    return _pairs(model, first, cases, [1.0] * len(cases), max(1, count))


def _pairs(
    model: Model,
    shown: TokenState,
    cases: Sequence[Case],
    progress: Sequence[float],
    micro_batch: int,
) -> list[Pair]:
    """Equal pictures are decoded once, ``micro_batch`` at a time."""
    texts, marked = decode_text(model, shown), decode_text(model, shown, masked=UNDECIDED)
    codes, places = shown.image.unique(dim=0, return_inverse=True)
    distinct = TokenState(codes.new_zeros(len(codes), 0), codes)
    starts = range(0, len(codes), micro_batch)
    decoded = [p for i in starts for p in decode_image(model, distinct[i : i + micro_batch])]
    pictures = [decoded[place] for place in places.tolist()]
    return [Pair(*fields) for fields in zip(cases, texts, marked, pictures, progress, strict=True)]


@torch.no_grad()
def _likeliest_picture(model: Model, moments: Moments) -> Tensor:
    """(M, H, W) codes without gaps."""
    picture = moments.after.image.clone()
    undecided = (picture == MASKED).flatten(1).any(dim=1)
    if undecided.any():
        asked = moments[undecided.nonzero()[:, 0]]
        sequence = model.layout.model_input(asked.prompt, asked.after)
        hidden = model.transformer(sequence.ids)[:, sequence.image_positions]
        likeliest = model.transformer.logits(hidden, image_choices(model)).argmax(dim=-1)
        found = likeliest.view_as(asked.after.image)
        picture[undecided] = torch.where(asked.after.image == MASKED, found, asked.after.image)
    return picture


def image_choices(model: Model) -> slice:
    first = model.layout.image_offset
    return slice(first, first + model.layout.codebook_size)


def log_probs(model: Model, moments: Moments, text_temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens revealed at each moment, given the state before it.

    Returns them (K,) float32, text tokens before image tokens, and (K,) int64: which moment each
    belongs to. A ``text_temperature`` of 0 has no likelihood; 1 stands in for it. Image codes are
    drawn at temperature 1 whatever the sampler's ``image_temperature``, which scales the noise on
    their order.
    """
    layout, transformer = model.layout, model.transformer
    sequence = layout.model_input(moments.prompt, moments.state)
    hidden = transformer(sequence.ids)
    found, owners = [], []
    words = slice(layout.text_choices.start, layout.text_choices.stop)
    for revealed, tokens, positions, choices, temperature in (
        (
            moments.text_revealed,
            moments.after.text - words.start,
            sequence.text_positions,
            words,
            text_temperature or 1.0,
        ),
        (
            moments.image_revealed.flatten(1),
            moments.after.image.flatten(1),
            sequence.image_positions,
            image_choices(model),
            1.0,
        ),
    ):
        owner, place = revealed.nonzero(as_tuple=True)
        logits = transformer.logits(hidden[owner, positions[place]], choices).float() / temperature
        chosen = tokens[owner, place][:, None]
        found.append(logits.log_softmax(dim=-1).gather(-1, chosen)[:, 0])
        owners.append(owner)
    return torch.cat(found), torch.cat(owners)

"""What flows between encode, denoise and decode: immutable token states, prompts, trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import InputError, shown
from .image.placement import Placement
from .options import Option, python_number
from .outside import check_kind, checked_count, checked_text, plain_tensor

if TYPE_CHECKING:
    from typing_extensions import Self

MASKED = -1
"""Value of a masked position in a :class:`TokenState`."""
_RANKS = {"instruction": 2, "unconditional": 2, "image": 3, "reference": 3, "negative": 2}
_FRACTION = Option(float, 0.0, "", low=0.0, high=1.0, name="fraction")
_MOST_REPEATS = 10**6
_MOST_TOKENS = 2**28
"""Of a batch: more than any of :data:`~.outside.MOST_SAMPLES` pictures has."""


@dataclass(frozen=True)
class _Tensors:
    """Tensors, or dataclasses of such, with the batch as first dimension."""

    def _map(self, fn: Callable[[Tensor], Tensor], *, rows: bool = False) -> Self:
        """Apply ``fn`` to each tensor; where it chooses ``rows``, the placements follow."""
        changes, device = {}, None
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name], device = fn(value), value.device
            elif isinstance(value, _Tensors):
                changes[field.name] = value._map(fn, rows=rows)
            elif isinstance(value, tuple) and rows:
                chosen = fn(torch.arange(len(value), device=device)).tolist()
                changes[field.name] = tuple(value[row] for row in chosen)
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda tensor: tensor.to(device))

    def repeat(self, n: int) -> Self:
        """Each sample ``n`` times: batch ``B`` becomes ``n·B`` (sample-major)."""
        n = checked_count(n, "n", 0, _MOST_REPEATS)
        return self._map(lambda tensor: tensor.repeat_interleave(n, dim=0), rows=True)

    def __getitem__(self, samples: slice | Tensor) -> Self:
        if isinstance(samples, int):
            raise TypeError(f"One sample is a batch, too: take it with [{samples}:{samples + 1}].")
        check_kind(samples, slice | Tensor, "samples", "a slice, or a tensor that chooses them")
        return self._map(lambda tensor: tensor[samples], rows=True)


@dataclass(frozen=True)
class TokenState(_Tensors):
    """A half-denoised pair of text and image. Variant-free and immutable.

    ``text``: (B, T) int64, text ids in the checkpoint's vocabulary, ``MASKED`` where masked.
    ``image``: (B, H, W) int64, codebook indices, ``MASKED`` where masked.
    ``placement``: where each sample's picture lies in the one it was made from, where there is one.

    Raises ``InputError`` on wrong ranks, dtypes or unequal batch sizes, and for tensors without
    values, or far too large.
    """

    text: Tensor
    image: Tensor
    placement: tuple[Placement, ...] | None = None

    def __post_init__(self) -> None:
        text, image = self.text, self.image
        for name, tokens in (("text", text), ("image", image)):
            check_kind(tokens, Tensor, name, "a tensor")
            _check_values(tokens, name)
        shaped = text.ndim == 2 and image.ndim == 3 and len(text) == len(image)
        if not shaped or {text.dtype, image.dtype} != {torch.int64}:
            raise InputError(
                "TokenState needs int64 text (B, T) and image (B, H, W) of one batch size, got "
                f"{text.dtype} {tuple(text.shape)} and {image.dtype} {tuple(image.shape)}."
            )
        check_kind(self.placement, tuple | None, "placement", "one for each sample")
        if self.placement is not None and len(self.placement) != len(text):
            raise InputError(f"TokenState has {len(self.placement)} placements for {len(text)}.")

    @classmethod
    def masked(cls, batch: int, text_length: int, grid: tuple[int, int]) -> TokenState:
        """The fully masked state. ``grid``: (height, width) in image tokens."""
        return cls(
            torch.full((batch, text_length), MASKED, dtype=torch.int64),
            torch.full((batch, *grid), MASKED, dtype=torch.int64),
        )

    @property
    def batch(self) -> int:
        return self.text.shape[0]

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the image in tokens."""
        return self.image.shape[1], self.image.shape[2]


@dataclass(frozen=True)
class Prompt(_Tensors):
    """Everything the model is conditioned on.

    ``instruction``: (B, L) int64, ids of the whole templated instruction.
    ``unconditional``: (B, U) int64, ids of the same template without the instruction.
    ``image``: (B, h, w) int64 codes of the input image, or ``None`` to generate without one.
    ``initial``: the state denoising starts from: all masked, or with locked parts.
    ``reference``: (B, h, w) codes of a second picture, or ``None``.
    ``task``: the name of a task of the family's; "" where it names none.
    ``negative``: (B, N) int64, ids of a templated instruction that guidance moves away from, in
    place of ``unconditional``; or ``None``.
    """

    instruction: Tensor
    unconditional: Tensor
    image: Tensor | None
    initial: TokenState
    reference: Tensor | None = None
    task: str = ""
    negative: Tensor | None = None

    def __post_init__(self) -> None:
        check_kind(self.initial, TokenState, "initial", "tokens")
        checked_text(self.task, "task")
        for name, rank in _RANKS.items():
            tokens, expected = getattr(self, name), f"a tensor of {rank} dimensions"
            if tokens is None and name not in ("instruction", "unconditional"):
                continue
            if not isinstance(tokens, Tensor) or tokens.ndim != rank:
                raise InputError(f"{name} is {shown(tokens)}; expected {expected}.")
            _check_values(tokens, name)
            if tokens.dtype != torch.int64 or (rank == 3 and not min(tokens.shape[1:])):
                raise InputError(
                    f"{name} is {tokens.dtype} {tuple(tokens.shape)}; expected int64 tokens, of a "
                    "picture at least one."
                )
        batches = {self.instruction.shape[0], self.unconditional.shape[0], self.initial.batch}
        batches |= {len(codes) for codes in self._optional if codes is not None}
        if len(batches) != 1:
            raise InputError(f"Prompt needs one batch size for all its parts, got {batches}.")

    @property
    def _optional(self) -> tuple[Tensor | None, ...]:
        return self.image, self.reference, self.negative

    @property
    def batch(self) -> int:
        return self.initial.batch

    @property
    def without_text(self) -> Tensor:
        """Ids that stand in the instruction's place in branches without it."""
        return self.unconditional if self.negative is None else self.negative

    @property
    def placement(self) -> tuple[Placement, ...] | None:
        """Where each sample's picture, of the size of the answer, lies in its original."""
        return self.initial.placement

    @classmethod
    def stack(cls, prompts: Sequence[Prompt]) -> Prompt:
        """Prompts of equal shapes as one batch. Raises ``InputError`` when shapes differ."""
        check_kind(prompts, list | tuple, "prompts", "a list of prompts")
        for prompt in prompts:
            check_kind(prompt, Prompt, "prompts", "a list of prompts")
        if len({p.task for p in prompts}) != 1:
            raise InputError("Prompts for different tasks cannot be stacked.")
        placements = [p.placement for p in prompts if p.placement is not None]
        return cls(
            _stacked([p.instruction for p in prompts]),
            _stacked([p.unconditional for p in prompts]),
            _stacked_some([p.image for p in prompts], "an input image"),
            TokenState(
                _stacked([p.initial.text for p in prompts]),
                _stacked([p.initial.image for p in prompts]),
                sum(placements, ()) if len(placements) == len(prompts) else None,
            ),
            _stacked_some([p.reference for p in prompts], "a second picture"),
            prompts[0].task,
            _stacked_some([p.negative for p in prompts], "a negative instruction"),
        )

    def starting_from(self, initial: TokenState) -> Prompt:
        """The same conditions with another start, e.g. a re-masked or half-denoised state. On the
        same canvas it keeps the prompt's placement. Raises ``InputError`` for another batch."""
        check_kind(initial, TokenState, "initial", "tokens")
        if initial.batch != self.batch:
            raise InputError(
                f"The tokens are a batch of {initial.batch}, the prompt one of {self.batch}: use "
                "the prompt that the tokens were made with."
            )
        if self.placement and (initial.batch, initial.grid) == (self.batch, self.initial.grid):
            initial = replace(initial, placement=self.placement)
        return replace(self, initial=initial)

    def without_instruction(self) -> Prompt:
        """The unconditional branch of guidance, but with the input image."""
        return replace(self, instruction=self.unconditional, negative=None)


def _check_values(tokens: Tensor, name: str) -> None:
    if plain_tensor(tokens) is None:
        raise InputError(f"{name} is sparse or has no values: give an ordinary tensor.")
    if tokens.numel() > _MOST_TOKENS:  # those of an expanded one are not in memory
        raise InputError(f"{name} has {tokens.numel()} tokens; expected at most {_MOST_TOKENS}.")


def _stacked_some(parts: list[Tensor | None], what: str) -> Tensor | None:
    given = [part for part in parts if part is not None]
    if len(given) not in (0, len(parts)):
        raise InputError(f"Prompts with and without {what} cannot be stacked.")
    return _stacked(given) if given else None


def _stacked(tensors: list[Tensor]) -> Tensor:
    if len({tensor.shape[1:] for tensor in tensors}) != 1:
        raise InputError(f"Prompts of shapes {[tuple(t.shape) for t in tensors]} differ.")
    return torch.cat(tensors)


@dataclass(frozen=True)
class Step(_Tensors):
    """One denoising step. Its tensors are shared with its neighbours, not copied.

    ``index``: position in the run, 0-based. ``state``, ``after``: the tokens before and after it.
    ``guess``: the tokens, with the model's latest guess where masked, ``MASKED`` where it was not
    asked yet.
    ``…_revealed``, (B, T) and (B, H, W) bool: unmasked at this step. ``…_confidence``, the same
    shapes in float32: probability of the guess where masked, 1 elsewhere.
    """

    index: int
    state: TokenState
    guess: TokenState
    after: TokenState
    text_revealed: Tensor
    image_revealed: Tensor
    text_confidence: Tensor
    image_confidence: Tensor

    @classmethod
    def before(cls, state: TokenState) -> Step:
        """What stands before the first step: nothing guessed, nothing unmasked."""
        text, image = state.text != MASKED, state.image != MASKED
        nothing = torch.zeros_like(text), torch.zeros_like(image)
        return cls(-1, state, state, state, *nothing, text.float(), image.float())


@dataclass(frozen=True)
class Trajectory:
    """The recorded steps of one denoising run, in order, and the states at its ends.
    ``operations``: FLOPs of its forwards and logits."""

    steps: tuple[Step, ...]
    initial: TokenState
    final: TokenState
    total_steps: int
    operations: float = 0.0

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def at(self, fraction: float) -> Step:
        """The recorded step that stands after ``fraction`` (0 … 1) of the run's steps. 0 is what
        stands before the first, 1 the :attr:`end`; between two recorded steps the earlier one.
        Raises ``InputError`` where the fraction is out of range."""
        _FRACTION.check(fraction := python_number(fraction))
        done = round(fraction * self.total_steps)
        if done == self.total_steps:
            return self.end
        past = [step for step in self.steps if step.index < done]
        return past[-1] if past else Step.before(self.initial)

    @property
    def end(self) -> Step:
        """The last step with the final state after it, recorded or not."""
        last = self.steps[-1] if self.steps else None
        if last is None or last.index < self.total_steps - 1:
            last = replace(Step.before(self.final), index=self.total_steps - 1)
        return replace(last, after=self.final, guess=self.final)

    def to(self, device: torch.device | str) -> Trajectory:
        """Tensors that steps share stay shared."""
        moved: dict[int, Tensor] = {}

        def move(tensor: Tensor) -> Tensor:
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device)
            return moved[id(tensor)]

        steps = tuple(step._map(move) for step in self.steps)
        ends = {"initial": self.initial._map(move), "final": self.final._map(move)}
        return replace(self, steps=steps, **ends)

"""Edit half-denoised tokens: select words and patches, mask, fix and extend them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal

import regex
import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint.load import Model
from .errors import InputError, shortened, shown
from .instructions import unknown_words
from .options import Option
from .outside import (
    MOST_SIDE,
    MOST_TEXT,
    check_kind,
    check_model,
    checked_count,
    checked_text,
)
from .state import MASKED, Prompt, TokenState
from .variants.base import MASKED_TEXT, pieces_of

REGEX_SECONDS, REGEX_LENGTH, REGEX_REPEATS = 0.5, 500, 1000
"""Limits of a pattern, which may come with somebody else's workflow: seconds to search, characters,
and repetitions, since compiling it takes time and memory, too."""
REGEX_TEXT = 200_000
_SIDES = ("left", "top", "right", "bottom")
_REST = Option(str, "auto", "", choices=("auto", "end", "undecided"), name="rest")
_REPEATS = re.compile(r"[{,]\s*(\d+)\s*(?=[,}])")
_VERBOSE = re.compile(r"\(\?[a-zA-Z0-9]*x")


def text_pieces(model: Model, state: TokenState) -> list[list[str]]:
    """Split each sample's text into one string per position, which together read as the text. A
    masked position is ``" ░"``, special tokens are empty."""
    check_model(model, "tokenizer")
    check_kind(state, TokenState, "state", "tokens")
    return [pieces_of(model.tokenizer, row.tolist()) for row in state.text]


def words_selected(pieces: Sequence[str], spans: str) -> list[bool]:
    """Select the positions of words by number: ``"2-4, 7"``, from 1; ``"5-"`` is all from 5 on,
    with the end-of-text tokens after the last word.

    Words are separated by spaces; a masked position is one. Raises ``InputError`` for a span that
    cannot be read or lies beyond the text.
    """
    words = [match.span() for match in re.finditer(r"\S+", _joined(pieces))]
    chosen, rest = [], len(pieces)
    for part, first, last in word_spans(spans):
        end = len(words) if last is None else last
        if not 1 <= first <= end <= len(words):
            raise InputError(f"words has {part!r}; the text has {len(words)} words, from 1.")
        span = (words[first - 1][0], words[end - 1][1])
        chosen.append(span)
        if last is None:
            rest = min(rest, _overlapping(pieces, [span]).index(True))
    return [s or i >= rest for i, s in enumerate(_overlapping(pieces, chosen))]


def word_spans(spans: str) -> Iterator[tuple[str, int, int | None]]:
    """Read numbers and ranges such as ``"2-4, 7"``: each as it is written, its first and its last
    number, None for a range without end. Raises ``InputError`` for one that cannot be read."""
    checked_text(spans, "words")
    for part in filter(None, (part.strip() for part in spans.split(","))):
        match = re.fullmatch(r"(\d{1,6})(?:\s*(-)\s*(\d{0,6}))?", part)
        if not match:
            raise InputError(f"words has {part!r}; expected numbers and ranges such as 2-4, 7.")
        last = match[3] if match[2] else match[1]
        yield part, int(match[1]), int(last) if last else None


def pattern_selected(pieces: Sequence[str], pattern: str) -> list[bool]:
    """Select the positions that share a character with a match of a regular expression. Raises
    ``InputError`` for a pattern that is not one, is too long, repeats too much, or takes too long
    to search."""
    checked_text(pattern, "pattern", REGEX_LENGTH)
    if _VERBOSE.search(pattern):
        raise InputError("pattern has the flag x, for blanks that do not count: write it without.")
    repeats = math.prod(max(1, int(n)) for n in _REPEATS.findall(pattern))
    text = _joined(pieces)
    if len(text) > REGEX_TEXT:
        raise InputError(f"The text has {len(text)} characters; {REGEX_TEXT} can be searched.")
    if repeats > REGEX_REPEATS:
        raise InputError(
            f"pattern has up to {shown(repeats)} repetitions; expected at most {REGEX_REPEATS}: "
            "simplify it."
        )
    try:
        matches = regex.finditer(pattern, text, timeout=REGEX_SECONDS)
        spans = [match.span() for match in matches]
    except (regex.error, RecursionError, OverflowError, ValueError, MemoryError) as error:
        raise InputError(
            f"pattern is {pattern!r}; expected a regular expression: {error}."
        ) from None
    except TimeoutError:
        raise InputError(
            f"pattern {pattern!r} took more than {REGEX_SECONDS:g} s to search; simplify it."
        ) from None
    return _overlapping(pieces, spans)


def _joined(pieces: Sequence[str]) -> str:
    check_kind(pieces, list | tuple, "pieces", "a list of texts")
    for piece in pieces:
        check_kind(piece, str, "pieces", "a list of texts")
    return "".join(pieces)


def _overlapping(pieces: Sequence[str], spans: Iterable[tuple[int, int]]) -> list[bool]:
    """Which pieces share a character other than a space with one of the spans."""
    ends = list(accumulate(map(len, pieces)))
    covered = [0] * (ends[-1] + 2 if ends else 2)  # how many spans begin less those that end
    for start, end in spans:
        if start < end:
            covered[start] += 1
            covered[end] -= 1
    before = [0, *accumulate(depth > 0 for depth in accumulate(covered))]
    selected = []
    for piece, end in zip(pieces, ends, strict=True):
        first = end - len(piece.lstrip())
        selected.append(before[end] > before[first])
    return selected


def reopened(
    state: TokenState, *, text: Tensor | None = None, image: Tensor | None = None
) -> TokenState:
    """Mask the tokens where ``text`` (B or 1, T) or ``image`` (B or 1, H, W), both bool, are set.
    The others stay as they are, bit for bit."""
    check_kind(state, TokenState, "state", "tokens")
    for name, chosen, tokens in (("text", text, state.text), ("image", image, state.image)):
        if chosen is not None:
            _check_chosen(chosen, tokens, name)
    return replace(
        state,
        text=state.text if text is None else state.text.masked_fill(text, MASKED),
        image=state.image if image is None else state.image.masked_fill(image, MASKED),
    )


def _check_chosen(chosen: Any, tokens: Tensor, name: str) -> None:
    """Raise ``InputError`` for what does not choose among ``tokens``."""
    expected = f"a bool tensor of {tuple(tokens.shape)}"
    check_kind(chosen, Tensor, name, expected)
    alike = chosen.ndim == tokens.ndim and all(
        own in (1, wanted) for own, wanted in zip(chosen.shape, tokens.shape, strict=True)
    )
    if not alike or chosen.dtype != torch.bool or chosen.is_meta:
        raise InputError(f"{name} is {shown(chosen)}; expected {expected}.")


def fixed_text(
    model: Model, text: str, length: int, rest: Literal["auto", "end", "undecided"] = "auto"
) -> Tensor:
    """Tokenise the user's words to (1, T) int64; each ░ in them is one masked token.

    ``length``: tokens that the text may have. ``rest``: what fills it up after the words: "end",
    end-of-text tokens; "undecided", masked ones; "auto", end-of-text tokens for checkpoints trained
    on padded answers, nothing for others (the released variant A). Raises ``InputError`` for a text
    that does not fit, or has words that the tokenizer does not know.
    """
    check_model(model, "tokenizer", "layout")
    length = checked_count(length, "length", 0, MOST_TEXT)
    _REST.check(rest)
    parts = checked_text(text, "The text").split(MASKED_TEXT)
    parts = [part.rstrip() for part in parts[:-1]] + parts[-1:]  # a word's space is its own token's
    ids: list[int] = []
    for number, part in enumerate(parts):
        ids += [MASKED] * (number > 0) + (_known_ids(model, part) if part.strip() else [])
    if not length:
        raise InputError("The answer is a picture alone, without text: leave the text empty.")
    if not ids or len(ids) > length:
        raise InputError(
            f"The text has {len(ids)} tokens; expected 1 to {length}: shorten it, or raise the "
            "text length."
        )
    if rest == "auto" and not model.layout.pads_text:
        return torch.tensor([ids])
    filler = MASKED if rest == "undecided" else model.layout.end_of_text
    return torch.tensor([ids + [filler] * (length - len(ids))])


def _known_ids(model: Model, text: str) -> list[int]:
    if words := unknown_words(model.tokenizer, text):
        listed = shortened(", ".join(words))
        raise InputError(f"The checkpoint does not know: {listed}. Use other words.")
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def tokens_for(
    prompt: Prompt, downsample: int, sides: Mapping[str, int], *, of_original: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """The image tokens that cover ``sides``, pixels by "left", "top", "right" and "bottom", for
    :func:`extended`; and the pixels that those add, by the sides that get any. ``downsample``:
    pixels per token. ``of_original``: pixels are those of the picture that ``prompt`` was fitted
    from, where it was, instead of those that the model sees."""
    check_kind(prompt, Prompt, "prompt", "a prompt")
    check_kind(sides, Mapping, "sides", "pixels by the names of sides")
    for name, pixels in sides.items():
        check_kind(name, str, "sides", "pixels by the names of sides")
        Option(str, "", "", choices=_SIDES, name="sides").check(name)
        checked_count(pixels, name, 0, MOST_SIDE)
    scale = prompt.placement[0].scale if of_original and prompt.placement else (1.0, 1.0)
    across, down = downsample * scale[0], downsample * scale[1]
    units = {"left": across, "top": down, "right": across, "bottom": down}
    tokens = {name: math.ceil(pixels / units[name] - 1e-6) for name, pixels in sides.items()}
    return tokens, {name: round(n * units[name]) for name, n in tokens.items() if n}


def extended(prompt: Prompt, *, left: int, top: int, right: int, bottom: int) -> Prompt:
    """Put ``prompt`` on a larger canvas, the new tokens masked.

    The sides are numbers of image tokens, ≥ 0. Unmasked tokens of ``prompt.initial`` stay where
    they were in the picture; without any, the input picture is put there. Raises ``InputError``
    when nothing is added or no picture is given.
    """
    check_kind(prompt, Prompt, "prompt", "a prompt")
    named = {"left": left, "top": top, "right": right, "bottom": bottom}
    for name, count in named.items():
        checked_count(count, name, 0, MOST_SIDE)
    if not any(named.values()):
        raise InputError("Nothing is added: give at least one side a positive number of pixels.")
    image = prompt.initial.image
    if not image.numel():
        raise InputError("The prompt asks for text alone: there is no picture to extend.")
    placement = prompt.placement
    unit = placement[0].size[0] // image.shape[2] if placement else 0
    if (image == MASKED).all():
        if prompt.image is None:
            raise InputError("There is no picture to extend: give Encode Instruction an image.")
        image = prompt.image
        size = image.shape[2] * unit, image.shape[1] * unit
        placement = placement and tuple(one.input.resized(size) for one in placement)
    wider = F.pad(image, (left, right, top, bottom), value=MASKED)
    sides = [tokens * unit for tokens in (left, top, right, bottom)]
    placement = placement and tuple(one.extended(*sides) for one in placement)
    start = replace(prompt.initial, image=wider, placement=placement)
    return prompt.starting_from(start)

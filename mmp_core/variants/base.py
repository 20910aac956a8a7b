"""What a layout promises: the only place that knows absolute ids and segment order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..state import MASKED, Prompt, TokenState

UNDECIDED = "░"
"""Stands for an undecided text token where people read it."""
_CONTEXT = 4


@dataclass(frozen=True)
class ModelInput:
    """The model's input and where its answer lies.

    ``ids``: (B, L) int64. ``image_positions``: (H·W,) int64, raster order.
    ``text_positions``: (T,) int64. ``answer_start``: index of the first token of the answer; all
    before it is the prefix that guidance replaces.
    """

    ids: Tensor
    image_positions: Tensor
    text_positions: Tensor
    answer_start: int


class Layout(Protocol):
    """Segment order and ids of one released variant.

    ``image_offset``: id of image code 0; code *c* is ``image_offset + c``.
    ``codebook_size``: number of image codes.
    ``mask_id``: id of an undecided position; also the end of the ids that text may take:
    ``text_choices`` is the half-open range of ids a corrected sampler chooses text from.
    ``end_of_text``: id that follows the answer's last word. ``pads_text``: whether the checkpoint
    was trained on answers filled up with it, so that every answer has the same length.
    """

    image_offset: int
    codebook_size: int
    mask_id: int
    text_choices: range
    end_of_text: int
    pads_text: bool

    def encode(
        self,
        instruction: str,
        image: Tensor | None,
        initial: TokenState,
    ) -> Prompt:
        """Tokenise ``instruction`` around ``image`` codes (B, h, w), or for generation without.

        The prompt's batch is ``initial``'s.
        """
        ...

    def model_input(
        self,
        prompt: Prompt,
        state: TokenState,
        *,
        drop_text: bool = False,
        drop_image: bool = False,
    ) -> ModelInput:
        """Input ids for ``state`` under ``prompt``, or under its unconditional forms.

        ``drop_text`` replaces the instruction, ``drop_image`` removes the input image.
        """
        ...

    def parse(self, ids: Tensor) -> tuple[Prompt, TokenState]:
        """The inverse of :meth:`model_input`: prompt and state of ids (B, L).

        Raises ``InputError`` when the segments are not where the variant puts them.
        """
        ...

    def decode_text(self, text: Tensor, *, masked: str = "") -> list[str]:
        """Strings of text tokens (B, T); ``masked`` stands for each undecided position."""
        ...


def token_finder(tokenizer: Any, fallback: Mapping[str, int]) -> Callable[[str], int]:
    """Looks a special token's id up in ``tokenizer``, else in the released constants."""

    def find(name: str) -> int:
        found = tokenizer.convert_tokens_to_ids(name)
        known = found is not None and found != tokenizer.unk_token_id
        return found if known else fallback[name]

    return find


def column(like: Tensor, token: int) -> Tensor:
    """(B, 1) of one id, for the batch of ``like``."""
    return like.new_full((like.shape[0], 1), token)


def decode_ids(tokenizer: Any, ids: list[int], masked: str) -> str:
    """Runs of decided ids decoded as one, undecided positions replaced by ``masked``."""
    if not masked or MASKED not in ids:
        return tokenizer.decode([i for i in ids if i != MASKED], skip_special_tokens=True)
    parts, run = [], []
    for token in [*ids, None]:
        if token is not None and token != MASKED:
            run.append(token)
            continue
        if run:
            parts.append(tokenizer.decode(run, skip_special_tokens=True))
            run = []
        if token == MASKED:
            parts.append(masked)
    return " ".join(part.strip() for part in parts if part.strip())


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    """One string per id, which together read as :func:`decode_ids` does, spaces aside.

    An id's string is what it adds to the ids just before it, since tokenizers put spaces between
    words and make one letter of several ids.
    """
    pieces: list[str] = []
    recent, letter, gap = [], [], ""
    for token in ids:
        if token == MASKED:
            pieces.append(f" {UNDECIDED}")
            recent, letter, gap = [], [], " "
            continue
        letter.append(token)
        longer = tokenizer.decode(recent + letter, skip_special_tokens=True)
        if longer.endswith("\ufffd"):  # its other ids are still to come
            pieces.append("")
            continue
        added = longer[len(tokenizer.decode(recent, skip_special_tokens=True)) :]
        pieces.append(f"{gap}{added}" if added else "")
        if added:
            recent, gap = (recent + letter)[-_CONTEXT:], ""
        letter = []
    return pieces

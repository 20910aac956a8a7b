"""Variant M (MAGVIT-v2, MMaDA order)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..state import MASKED, Prompt, TokenState
from .base import ModelInput, column, decode_ids, token_finder

_FALLBACK_IDS = {
    "<|soi|>": 126084,
    "<|eoi|>": 126085,
    "<|t2i|>": 126088,
    "<|interleave|>": 126095,
    "<|startoftext|>": 126080,
}
_NO_IMAGE = 0
"""Id that stands at every image position of an absent input image."""


class VariantM:
    """``interleave soi codes eoi bos instruction eos | soi codes eoi bos text``.

    Rows have no separators, so ids alone do not tell a grid's shape. Without an input image the
    tag is ``t2i`` and its place holds id 0, as many times as the output has codes. The ``bos``
    before the text is fixed and not part of the state (reference: inference.py, modeling_mmada.py).
    """

    def __init__(self, tokenizer: Any, config: Mapping[str, Any]):
        find = token_finder(tokenizer, _FALLBACK_IDS)
        self.tokenizer = tokenizer
        self.soi, self.eoi = find("<|soi|>"), find("<|eoi|>")
        self.generate_tag, self.edit_tag = find("<|t2i|>"), find("<|interleave|>")
        self.bos = tokenizer.bos_token_id
        if self.bos is None:
            self.bos = find("<|startoftext|>")
        self.eos = tokenizer.eos_token_id
        if self.eos is None:
            self.eos = config["eos_token_id"]
        self.mask_id = config["mask_token_id"]
        self.image_offset = config.get("text_vocab_size", len(tokenizer))
        self.codebook_size = config.get("codebook_size", 8192)
        self.text_choices = range(self.mask_id)
        self.end_of_text, self.pads_text = self.eos, True

    def encode(self, instruction: str, image: Tensor | None, initial: TokenState) -> Prompt:
        words = self.tokenizer(instruction)["input_ids"]
        if words[:1] != [self.bos]:
            words = [self.bos, *words]
        words = torch.tensor([*words, self.eos]).expand(initial.batch, -1)
        blank = torch.full_like(words, self.eos)
        blank[:, 0] = self.bos
        return Prompt(words, blank, image, initial)

    def model_input(
        self,
        prompt: Prompt,
        state: TokenState,
        *,
        drop_text: bool = False,
        drop_image: bool = False,
    ) -> ModelInput:
        prefix = self.prefix(prompt, state, drop_text=drop_text, drop_image=drop_image)
        codes = state.image.flatten(1)
        image = torch.where(codes == MASKED, self.mask_id, codes + self.image_offset)
        text = torch.where(state.text == MASKED, self.mask_id, state.text)
        soi, eoi, bos = (column(text, token) for token in (self.soi, self.eoi, self.bos))
        ids = torch.cat((prefix, soi, image, eoi, bos, text), dim=1)
        start = prefix.shape[1]
        image_positions = start + 1 + torch.arange(image.shape[1], device=ids.device)
        text_start = start + 3 + image.shape[1]
        text_positions = text_start + torch.arange(text.shape[1], device=ids.device)
        return ModelInput(ids, image_positions, text_positions, start)

    def prefix(
        self, prompt: Prompt, state: TokenState, *, drop_text: bool, drop_image: bool
    ) -> Tensor:
        """(B, P) ids before the answer."""
        words = prompt.unconditional if drop_text else prompt.instruction
        tag = self.generate_tag if prompt.image is None else self.edit_tag
        codes = state.image if prompt.image is None else prompt.image
        codes = codes.flatten(1)
        absent = prompt.image is None or drop_image
        image = torch.full_like(codes, _NO_IMAGE) if absent else codes + self.image_offset
        tag, soi, eoi = (column(words, token) for token in (tag, self.soi, self.eoi))
        return torch.cat((tag, soi, image, eoi, words), dim=1)

    def parse(
        self,
        ids: Tensor,
        *,
        grid: tuple[int, int] | None = None,
        input_grid: tuple[int, int] | None = None,
    ) -> tuple[Prompt, TokenState]:
        """As in :class:`Layout`. Grids are (height, width); by default the squarest that fit."""
        first = ids[0]
        if first[0] not in (self.edit_tag, self.generate_tag) or first[1] != self.soi:
            raise InputError("Variant M ids must start with the interleave or t2i tag and soi.")
        input_end = self._next(first, self.eoi, 2, "eoi")
        start = self._next(first, self.soi, input_end, "second soi")
        end = self._next(first, self.eoi, start, "second eoi")
        if first[end + 1 : end + 2] != self.bos:
            raise InputError("Variant M ids must hold bos between the image and the text.")
        text = ids[:, end + 2 :]
        state = TokenState(
            torch.where(text == self.mask_id, MASKED, text),
            self._codes(ids[:, start + 1 : end], grid),
        )
        words, image = ids[:, input_end + 1 : start], None
        if not (ids[:, 2:input_end] == _NO_IMAGE).all():
            image = self._codes(ids[:, 2:input_end], input_grid)
        blank = torch.full_like(words, self.eos)
        blank[:, 0] = self.bos
        return Prompt(words, blank, image, state), state

    def _codes(self, ids: Tensor, grid: tuple[int, int] | None) -> Tensor:
        codes = torch.where(ids == self.mask_id, MASKED, ids - self.image_offset)
        return codes.unflatten(1, grid or squarest(ids.shape[1]))

    def _next(self, ids: Tensor, token: int, start: int, name: str) -> int:
        found = (ids[start:] == token).nonzero()
        if not len(found):
            raise InputError(f"Variant M ids must hold a {name} from position {start} on.")
        return start + int(found[0])

    def decode_text(self, text: Tensor, *, masked: str = "") -> list[str]:
        return [decode_ids(self.tokenizer, row.tolist(), masked) for row in text]


def squarest(count: int) -> tuple[int, int]:
    """(height, width) of ``count`` cells, as near to a square as can be, never higher than wide."""
    height = next(h for h in range(math.isqrt(count), 0, -1) if count % h == 0)
    return height, count // height

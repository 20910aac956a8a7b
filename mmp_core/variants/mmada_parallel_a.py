"""Variant A (Amused-VQ, Lumina-DiMOO order)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..state import MASKED, Prompt, TokenState
from .base import ModelInput, column, decode_ids, token_finder

EDIT = "Generate an image applying the following editing instruction based on the original image."
GENERATE = "Generate an image according to the text prompt."
"""System prompts the released weights were trained with (reference: inference.py, train.py)."""

_FALLBACK_IDS = {
    "<|newline|>": 126084,
    "<boi>": 126349,
    "<eoi>": 126350,
    "<uncondition>": 126351,
    "<answer>": 126354,
    "</answer>": 126355,
}
_FALLBACK_IMAGE_OFFSET, _FALLBACK_EOS = 126356, 126081


class VariantA:
    """``<system>…</system><user>instruction [boi rows eoi] </user>``, then the answer
    ``<answer> boi rows eoi text </answer>``.

    ``rows``: each row of image codes followed by one newline id. The input image stands just
    before the closing ``</user>`` (reference: inference.py).
    """

    def __init__(self, tokenizer: Any, config: Mapping[str, Any]):
        token_id = token_finder(tokenizer, _FALLBACK_IDS)
        self.tokenizer = tokenizer
        self.newline, self.boi, self.eoi = map(token_id, ("<|newline|>", "<boi>", "<eoi>"))
        self.answer, self.answer_end = map(token_id, ("<answer>", "</answer>"))
        self.mask_id = config["mask_token_id"]
        self.image_offset = config.get("text_vocab_size", _FALLBACK_IMAGE_OFFSET)
        self.codebook_size = config.get("codebook_size", 8192)
        self.text_choices = range(self.mask_id)
        self.end_of_text = config.get("eos_token_id", _FALLBACK_EOS)
        self.pads_text = "default_text_length" in config
        self._unconditional = {s: self._templated(s, "<uncondition>") for s in (EDIT, GENERATE)}

    def encode(self, instruction: str, image: Tensor | None, initial: TokenState) -> Prompt:
        system = GENERATE if image is None else EDIT
        words = self._templated(system, instruction).expand(initial.batch, -1)
        blank = self._unconditional[system].expand(initial.batch, -1)
        return Prompt(words, blank, image, initial)

    def _templated(self, system: str, user: str) -> Tensor:
        """(1, L) int64 ids of the instruction in its template."""
        text = f"<system>{system}</system><user>{user}</user>"
        return torch.tensor([self.tokenizer(text)["input_ids"]], dtype=torch.int64)

    def model_input(
        self,
        prompt: Prompt,
        state: TokenState,
        *,
        drop_text: bool = False,
        drop_image: bool = False,
    ) -> ModelInput:
        prefix = self.prefix(prompt, drop_text=drop_text, drop_image=drop_image)
        height, width = state.grid
        text = torch.where(state.text == MASKED, self.mask_id, state.text)
        ids = torch.cat(
            (
                prefix,
                column(prefix, self.answer),
                self._image_segment(state.image),
                text,
                column(prefix, self.answer_end),
            ),
            dim=1,
        )
        start = prefix.shape[1]
        rows = torch.arange(height, device=ids.device)[:, None] * (width + 1)
        image_positions = (start + 2 + rows + torch.arange(width, device=ids.device)).flatten()
        text_start = start + 3 + height * (width + 1)
        text_positions = text_start + torch.arange(text.shape[1], device=ids.device)
        return ModelInput(ids, image_positions, text_positions, start)

    def prefix(self, prompt: Prompt, *, drop_text: bool, drop_image: bool) -> Tensor:
        """(B, P) ids before the answer."""
        words = prompt.unconditional if drop_text else prompt.instruction
        if prompt.image is None or drop_image:
            return words
        return torch.cat((words[:, :-1], self._image_segment(prompt.image), words[:, -1:]), dim=1)

    def _image_segment(self, codes: Tensor) -> Tensor:
        """boi, each row of (B, H, W) codes followed by a newline, eoi."""
        ids = torch.where(codes == MASKED, self.mask_id, codes + self.image_offset)
        newline = ids.new_full((*ids.shape[:2], 1), self.newline)
        rows = torch.cat((ids, newline), dim=2).flatten(1)
        return torch.cat((column(rows, self.boi), rows, column(rows, self.eoi)), dim=1)

    def parse(self, ids: Tensor) -> tuple[Prompt, TokenState]:
        start = self._answer_start(ids[0])
        end = start + 2 + int((ids[0, start + 2 :] == self.eoi).nonzero()[0])
        text = ids[:, end + 1 : -1]
        state = TokenState(
            torch.where(text == self.mask_id, MASKED, text),
            self._codes(ids[:, start + 2 : end]),
        )
        prefix, image = ids[:, :start], None
        if prefix[0, -2] == self.eoi:
            first = int((prefix[0] == self.boi).nonzero()[-1])
            image = self._codes(prefix[:, first + 1 : -2])
            prefix = torch.cat((prefix[:, :first], prefix[:, -1:]), dim=1)
        blank = self.encode("", image, state).unconditional
        return Prompt(prefix, blank.to(ids.device), image, state), state

    def _answer_start(self, ids: Tensor) -> int:
        """Index of the last ``<answer> boi``: an instruction may hold either token, too."""
        pairs = (ids[:-1] == self.answer) & (ids[1:] == self.boi)
        if not pairs.any() or ids[-1] != self.answer_end:
            raise InputError("Variant A ids must end in <answer> boi rows eoi text </answer>.")
        return int(pairs.nonzero()[-1])

    def _codes(self, rows: Tensor) -> Tensor:
        """(B, H, W) codes of rows that each end in a newline."""
        width = int((rows[0] == self.newline).nonzero()[0])
        grid = rows.unflatten(1, (-1, width + 1))[:, :, :-1]
        return torch.where(grid == self.mask_id, MASKED, grid - self.image_offset)

    def decode_text(self, text: Tensor, *, masked: str = "") -> list[str]:
        return [decode_ids(self.tokenizer, row.tolist(), masked) for row in text]

"""Lock / Re-mask, Set Tokens and Extend Canvas: tokens changed between two runs."""

from dataclasses import replace
from typing import Literal

import torch
from comfy_api.v0_0_2 import io
from PIL import Image

from ..mmp_core import MASKED, MASKED_TEXT, InputError, Prompt, TokenState, decode_image
from ..mmp_core.editing import (
    extended,
    fixed_text,
    pattern_selected,
    reopened,
    text_pieces,
    tokens_for,
    word_spans,
    words_selected,
)
from ..mmp_core.errors import sentence
from ..mmp_core.fitting import fitted_codes, in_turn, mask_box, selected_cells, selected_note
from ..mmp_core.image.mask_settings import MaskSettings
from ..mmp_core.options import options_of
from ..views.mask_overlay import mask_overlay
from .denoise import started
from .host import HostedModel, interruptible, stop_if_interrupted
from .pictures import said, to_pictures
from .types import Model, Schema, Tokens
from .types import Prompt as PromptType
from .widgets import between, widget

_MASK = options_of(MaskSettings)
_LARGEST = 4096
_PIXELS_OF = ("the model's picture", "the original")
_WORDS = ("keep all", "reopen all", "keep selected", "reopen selected")
_PATCHES = ("keep all", "reopen all", "keep masked", "reopen masked")


class Remask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelRemask",
            display_name="Lock / Re-mask (MMaDA)",
            category="MMaDA-Parallel/tokens",
            description="Keeps the good parts of text and picture and masks the rest again, for "
            "Parallel Denoise to fill. What is kept does not change.",
            search_aliases=["mmada", "lock tokens", "keep tokens", "redraw"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint that made the tokens."),
                Tokens.Input("tokens", tooltip="From Parallel Denoise or Trajectory Step."),
                io.Combo.Input(
                    "picture",
                    options=list(_PATCHES),
                    default="reopen masked",
                    tooltip="Which image tokens to keep, and which to reopen, so that they are "
                    "denoised again. masked: those under the mask; without a mask, none.",
                ),
                io.Combo.Input(
                    "text",
                    options=list(_WORDS),
                    default="keep all",
                    tooltip="Which words to keep, and which to reopen, so that they are denoised "
                    "again. selected: those that words or pattern name.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Selects words by number, counting from 1. 2-4, 7 selects four "
                    "words. 5- selects the fifth word and everything after it, so that "
                    "the text may also become longer.",
                ),
                io.String.Input(
                    "pattern",
                    default="",
                    tooltip="Selects words by a regular expression: every word that overlaps a "
                    "match. Example: red|blue",
                ),
                widget(_MASK["coverage"]),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Selects parts of the picture. A mask of the original's size is laid "
                    "on the original; a mask of any other size is stretched over the "
                    "whole result.",
                ),
                widget(_MASK["grow"], optional=True),
            ],
            outputs=[
                Tokens.Output(
                    display_name="tokens", tooltip="For the tokens input of Parallel Denoise."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, words: str | None = None, pattern: str | None = None) -> bool | str:
        """Refuse what cannot be read when it is queued. None: it is linked."""
        try:
            list(word_spans(words or ""))
            pattern_selected([], pattern or "")
        except InputError as problem:
            return str(problem)
        return True

    @classmethod
    def execute(
        cls,
        model: HostedModel,
        tokens: TokenState,
        picture: str,
        text: str,
        words: str,
        pattern: str,
        coverage: float,
        mask: torch.Tensor | None = None,
        grow: int = 0,
    ) -> io.NodeOutput:
        masked, masks, notes = torch.zeros(tokens.image.shape, dtype=torch.bool), None, []
        if mask is not None:
            if not min(tokens.grid):
                raise InputError("The answer is text alone: disconnect the mask.")
            flat = mask.reshape(-1, *mask.shape[-2:]).cpu()
            masks, notes = in_turn(flat, tokens.batch, "mask", "result")
            unit = model.model.downsample
            masked, empty = selected_cells(
                *(tokens, masks, unit, coverage, grow), callback=lambda *_: stop_if_interrupted()
            )
            notes += empty
        selected = torch.zeros(tokens.text.shape, dtype=torch.bool)
        if text.endswith("selected"):
            selected = _selected(model, tokens, words, pattern)
        cells = _to_reopen(picture, masked)
        changed = reopened(tokens, text=_to_reopen(text, selected), image=cells)
        if masks is None or not picture.endswith("masked"):
            return io.NodeOutput(changed, ui=said(notes, cls))
        notes.append(selected_note(changed))
        return io.NodeOutput(changed, ui=said(notes, cls, _overlays(model, tokens, masks, cells)))


def _overlays(
    model: HostedModel, tokens: TokenState, masks: torch.Tensor, cells: torch.Tensor
) -> list[Image.Image]:
    """Each sample's picture with its mask and the image tokens that are reopened."""
    model.prepare_decoding(tokens.grid)
    unit, overlays = model.model.downsample, []
    for sample, (mask, selected) in enumerate(interruptible(zip(masks, cells, strict=True))):
        (picture,) = decode_image(model.model, tokens[sample : sample + 1])
        box = mask_box(tokens, sample, mask, unit)
        overlays.append(mask_overlay(picture, mask, selected, box))
    return overlays


def _selected(model: HostedModel, tokens: TokenState, words: str, pattern: str) -> torch.Tensor:
    """(B, T) bool. Words named by number must exist in one text of the batch at least."""
    rows, problems = [], []
    for sample in interruptible(range(tokens.batch)):
        (pieces,) = text_pieces(model.model, tokens[sample : sample + 1])
        row = torch.zeros(len(pieces), dtype=torch.bool)
        try:
            row |= torch.tensor(words_selected(pieces, words), dtype=torch.bool)
        except InputError as problem:
            problems.append(problem)
        if pattern:
            row |= torch.tensor(pattern_selected(pieces, pattern), dtype=torch.bool)
        rows.append(row)
    if len(problems) == tokens.batch:
        raise problems[0]
    return torch.stack(rows)


def _to_reopen(choice: str, selected: torch.Tensor) -> torch.Tensor:
    action, _, which = choice.partition(" ")
    if which == "all":
        return torch.full_like(selected, action == "reopen")
    return selected if action == "reopen" else ~selected


class SetTokens(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelSetTokens",
            display_name="Set Tokens (MMaDA)",
            category="MMaDA-Parallel/tokens",
            description="Sets the text, the picture or parts of them, and leaves the rest to "
            "Parallel Denoise, which can draw your own plan or explain a finished "
            "picture.",
            search_aliases=[
                "mmada",
                "caption",
                "given text",
                "given image",
                "explain",
                "describe image",
            ],
            inputs=[
                Model.Input("model", tooltip="From Load MMaDA-Parallel."),
                PromptType.Input("prompt", tooltip="From Encode Instruction."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip=f"Your own text. Each {MASKED_TEXT} in it is one masked token, for the "
                    "model to fill. Empty: the text stays as it is.",
                ),
                io.Combo.Input(
                    "rest",
                    options=["auto", "end", "undecided"],
                    default="auto",
                    advanced=True,
                    tooltip="What follows your text. end: nothing. undecided: masked tokens, so "
                    "that the model may continue it. auto: end, in the form that the "
                    "checkpoint was trained on.",
                ),
                io.Combo.Input(
                    "instruction",
                    options=["auto", "keep", "leave out"],
                    default="auto",
                    advanced=True,
                    tooltip="Whether the model still sees the instruction of the prompt. Where "
                    "the instruction contradicts your text, the picture follows the "
                    "instruction. auto: the instruction is left out if your text is "
                    "complete, without gaps.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The finished picture, or one per result. It is fitted to the size "
                    "of the result in the same way as an input picture.",
                ),
                Tokens.Input(
                    "tokens",
                    optional=True,
                    tooltip="The tokens to change. Leave unconnected to start from the prompt, "
                    "where everything that is not kept is masked.",
                ),
            ],
            outputs=[
                PromptType.Output(
                    display_name="prompt",
                    tooltip="For Parallel Denoise, which starts from what was set here.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HostedModel,
        prompt: Prompt,
        text: str,
        rest: Literal["auto", "end", "undecided"],
        instruction: str,
        image: torch.Tensor | None = None,
        tokens: TokenState | None = None,
    ) -> io.NodeOutput:
        prompt = started(prompt, tokens)
        words, codes, whole = prompt.initial.text, prompt.initial.image, False
        notes: list[str] = []
        if text.strip():
            fixed = fixed_text(model.model, text, words.shape[1], rest)
            words, whole = fixed.expand(prompt.batch, -1), not (fixed == MASKED).any()
        if image is not None:
            pictures = to_pictures(image)
            model.prepare_decoding(prompt.initial.grid)
            codes, notes = fitted_codes(
                *(model.model, pictures, prompt.initial), callback=lambda *_: stop_if_interrupted()
            )
        if instruction == "leave out" or (instruction == "auto" and whole):
            prompt = prompt.without_instruction()
        start = replace(prompt.initial, text=words, image=codes)
        return io.NodeOutput(prompt.starting_from(start), ui=said(notes, cls))


class ExtendCanvas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Int.Input:
            return io.Int.Input(
                name,
                **between(0, _LARGEST, default=0, step=8),
                tooltip="Pixels to add on this side, rounded up to whole image tokens. They are "
                "measured in pixels of the picture that pixels_of names.",
            )

        return Schema(
            node_id="MMaDAParallelExtendCanvas",
            display_name="Extend Canvas (MMaDA)",
            category="MMaDA-Parallel/pictures",
            description="Outpainting: keeps the image tokens of the input picture and lets "
            "Parallel Denoise draw what lies beyond its edges.",
            search_aliases=["mmada", "outpaint", "pad"],
            inputs=[
                Model.Input("model", tooltip="From Load MMaDA-Parallel."),
                PromptType.Input("prompt", tooltip="From Encode Instruction, with an image."),
                *map(side, ("left", "top", "right", "bottom")),
                io.Combo.Input(
                    "pixels_of",
                    options=list(_PIXELS_OF),
                    default=_PIXELS_OF[0],
                    optional=True,
                    tooltip="What left, top, right and bottom are measured in: pixels of the "
                    "picture as the model sees it, or pixels of the original, to which "
                    "Put Back adds the border at the original's own scale.",
                ),
            ],
            outputs=[PromptType.Output(display_name="prompt", tooltip="For Parallel Denoise.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        left: int | None = 0,
        top: int | None = 0,
        right: int | None = 0,
        bottom: int | None = 0,
    ) -> bool | str:
        """Refuse what adds nothing when it is queued. None: that side is linked."""
        sides = (left, top, right, bottom)
        given = [side for side in sides if side is not None]
        if not all(isinstance(side, int) and 0 <= side <= _LARGEST for side in given):
            return sentence(f"A side is out of range: expected 0 to {_LARGEST} pixels.")
        if any(side != 0 for side in sides):
            return True
        return sentence("Nothing is added: give at least one side a positive number of pixels.")

    @classmethod
    def execute(
        cls,
        model: HostedModel,
        prompt: Prompt,
        left: int,
        top: int,
        right: int,
        bottom: int,
        pixels_of: str = _PIXELS_OF[0],
    ) -> io.NodeOutput:
        sides = {"left": left, "top": top, "right": right, "bottom": bottom}
        of_original = pixels_of != _PIXELS_OF[0]
        tokens, added = tokens_for(prompt, model.model.downsample, sides, of_original=of_original)
        notes = []
        if any(pixels != sides[name] for name, pixels in added.items()):
            words = ", ".join(f"{pixels} on the {name}" for name, pixels in added.items())
            notes.append(sentence(f"Pixels added, of {pixels_of}, in whole image tokens: {words}."))
        return io.NodeOutput(extended(prompt, **tokens), ui=said(notes, cls))

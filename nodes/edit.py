"""Lock / Re-mask, Set Tokens and Extend Canvas: tokens changed between two runs."""

import math
from dataclasses import replace
from typing import Literal

import torch
from comfy_api.latest import io

from ..mmp_core import MASKED, MASKED_TEXT, InputError, Prompt, TokenState, encode_image
from ..mmp_core.editing import (
    extended,
    fixed_text,
    pattern_selected,
    reopened,
    text_pieces,
    words_selected,
)
from ..mmp_core.image.masks import cells_of
from .denoise import started
from .host import HostedModel
from .pictures import masks_for, to_picture
from .types import Model, Schema, Tokens
from .types import Prompt as PromptType
from .widgets import between

_WORDS = ("keep all", "reopen all", "keep selected", "reopen selected")
_PATCHES = ("keep all", "reopen all", "keep masked", "reopen masked")


class Remask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelRemask",
            display_name="Lock / Re-mask",
            description="Keeps the parts of text and picture that are good and masks the rest "
            "again, for Parallel Denoise to fill. What is kept does not change.",
            search_aliases=["mmada", "lock tokens", "inpaint", "keep"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint that the tokens were made with."),
                Tokens.Input("tokens", tooltip="From Parallel Denoise or Trajectory Step."),
                io.Combo.Input(
                    "picture",
                    options=list(_PATCHES),
                    default="reopen masked",
                    tooltip="Which image tokens to keep, and which to denoise again (reopen). "
                    "masked: those under the mask; without a mask there are none.",
                ),
                io.Combo.Input(
                    "text",
                    options=list(_WORDS),
                    default="keep all",
                    tooltip="Which words to keep, and which to denoise again (reopen). selected: "
                    "those that words or pattern name.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Selects words by their number, from 1: 2-4, 7 selects four words. 5- "
                    "selects the fifth and everything after it, the end of the text included, so "
                    "that the text may grow.",
                ),
                io.String.Input(
                    "pattern",
                    default="",
                    tooltip="Selects words by a regular expression: every word that shares a "
                    "letter with a match. Example: red|blue",
                ),
                io.Float.Input(
                    "coverage",
                    **between(0.0, 0.99, default=0.5, step=0.05),
                    advanced=True,
                    tooltip="An image token is masked when the mask covers more than this share "
                    "of it. 0: as soon as the mask touches it.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Selects parts of the picture. It may have any size: it is stretched "
                    "over the whole picture.",
                ),
            ],
            outputs=[
                Tokens.Output(
                    display_name="tokens", tooltip="For the tokens input of Parallel Denoise."
                )
            ],
        )

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
    ) -> io.NodeOutput:
        masked = torch.zeros(1, *tokens.grid, dtype=torch.bool)
        if mask is not None:
            masked = cells_of(masks_for(mask, tokens.batch), tokens.grid, coverage)
        selected = torch.zeros(tokens.text.shape, dtype=torch.bool)
        if text.endswith("selected"):
            selected = _selected(text_pieces(model.model, tokens), words, pattern)
        changed = reopened(
            tokens, text=_to_reopen(text, selected), image=_to_reopen(picture, masked)
        )
        return io.NodeOutput(changed)


def _selected(texts: list[list[str]], words: str, pattern: str) -> torch.Tensor:
    """(B, T) bool. Words named by number must exist in one text of the batch at least."""
    rows, problems = [], []
    for pieces in texts:
        row = torch.zeros(len(pieces), dtype=torch.bool)
        try:
            row |= torch.tensor(words_selected(pieces, words))
        except InputError as problem:
            problems.append(problem)
        if pattern:
            row |= torch.tensor(pattern_selected(pieces, pattern))
        rows.append(row)
    if len(problems) == len(texts):
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
            display_name="Set Tokens",
            description="Sets the text, the picture, or parts of them, for Parallel Denoise to "
            "fill in the rest: it draws your own plan, or explains a finished picture.",
            search_aliases=["mmada", "given text", "given image", "explain"],
            inputs=[
                Model.Input("model", tooltip="From Load MMaDA-Parallel."),
                PromptType.Input("prompt", tooltip="From Encode Instruction."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip=f"Your own text. Each {MASKED_TEXT} in it is one masked token, for the "
                    "model to fill. Empty: the text is left as it is.",
                ),
                io.Combo.Input(
                    "rest",
                    options=["auto", "end", "undecided"],
                    default="auto",
                    advanced=True,
                    tooltip="What follows your text. end: nothing. undecided: masked tokens, so "
                    "that the model may go on. auto: end, in the form that the checkpoint was "
                    "trained on.",
                ),
                io.Combo.Input(
                    "instruction",
                    options=["auto", "keep", "leave out"],
                    default="auto",
                    advanced=True,
                    tooltip="Whether the model still sees the instruction of the prompt. If that "
                    "asks for something other than your text says, the picture ignores your text. "
                    "auto: leave it out if your text is complete, without gaps.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The finished picture, in the size of the result.",
                ),
                Tokens.Input(
                    "tokens",
                    optional=True,
                    tooltip="What to change. Leave unconnected to start from the prompt, where "
                    "all is masked that is not kept.",
                ),
            ],
            outputs=[
                PromptType.Output(
                    display_name="prompt",
                    tooltip="For Parallel Denoise, which starts from what is set here.",
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
        if text.strip():
            fixed = fixed_text(model.model, text, words.shape[1], rest)
            words, whole = fixed.expand(prompt.batch, -1), not (fixed == MASKED).any()
        if image is not None:
            codes = _codes_of(model, image, prompt.initial)
        if instruction == "leave out" or (instruction == "auto" and whole):
            prompt = prompt.without_instruction()
        return io.NodeOutput(prompt.starting_from(replace(prompt.initial, text=words, image=codes)))


def _codes_of(model: HostedModel, image: torch.Tensor, start: TokenState) -> torch.Tensor:
    """(B, H, W) of one picture, or of one for each result."""
    pictures = [to_picture(pixels) for pixels in image]
    model.prepare_encoding(picture.size for picture in pictures)
    codes = torch.cat([encode_image(model.model, picture).cpu() for picture in pictures])
    if codes.shape[1:] != start.grid or codes.shape[0] not in (1, start.batch):
        (height, width), unit = start.grid, model.model.downsample
        raise InputError(
            f"The model sees the image as {codes.shape[0]} picture(s) of {codes.shape[2] * unit}x"
            f"{codes.shape[1] * unit}, and the prompt asks for {start.batch} of {width * unit}x"
            f"{height * unit}: give one picture of that size, or one for each result."
        )
    return codes.expand(start.batch, -1, -1)


class ExtendCanvas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Int.Input:
            return io.Int.Input(
                name,
                **between(0, 4096, default=0, step=8),
                tooltip="Pixels to add on this side, rounded up to whole image tokens.",
            )

        return Schema(
            node_id="MMaDAParallelExtendCanvas",
            display_name="Extend Canvas",
            description="Outpainting: the image tokens of the input picture stay, and Parallel "
            "Denoise draws what lies beyond its sides.",
            search_aliases=["mmada", "outpaint", "pad"],
            inputs=[
                Model.Input("model", tooltip="From Load MMaDA-Parallel."),
                PromptType.Input("prompt", tooltip="From Encode Instruction, with an image."),
                *map(side, ("left", "top", "right", "bottom")),
            ],
            outputs=[PromptType.Output(display_name="prompt", tooltip="For Parallel Denoise.")],
        )

    @classmethod
    def execute(
        cls, model: HostedModel, prompt: Prompt, left: int, top: int, right: int, bottom: int
    ) -> io.NodeOutput:
        unit = model.model.downsample
        sides = {"left": left, "top": top, "right": right, "bottom": bottom}
        tokens = {name: math.ceil(pixels / unit) for name, pixels in sides.items()}
        return io.NodeOutput(extended(prompt, **tokens))

"""Decode Text and Decode Image."""

import torch
from comfy_api.v0_0_2 import io, ui

from ..mmp_core import (
    MASKED_TEXT,
    InputError,
    TokenState,
    decode_pixels,
    decode_text,
    masked_pixels,
)
from .host import HostedModel, interruptible, to_intermediate
from .types import Model, Schema, Tokens

FILLS = {
    "grey": (0.5, 0.5, 0.5),
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
}


class DecodeText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelDecodeText",
            display_name="Decode Text",
            description="Turns tokens into text: what the model reasoned while it drew.",
            search_aliases=["mmada", "text of tokens", "detokenize"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint that made the tokens."),
                Tokens.Input(
                    "tokens", tooltip="From Parallel Denoise, or from any step of its trajectory."
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="text",
                    tooltip=f"The text; {MASKED_TEXT} stands for a masked token. The texts of a "
                    "batch are separated by empty lines.",
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: HostedModel, tokens: TokenState) -> io.NodeOutput:
        samples = (tokens[index : index + 1] for index in interruptible(range(tokens.batch)))
        texts = [decode_text(model.model, one, masked=MASKED_TEXT)[0] for one in samples]
        text = "\n\n".join(texts)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class DecodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelDecodeImage",
            display_name="Decode Image",
            description="Turns tokens into a picture.",
            search_aliases=["mmada", "vae decode"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint that made the tokens."),
                Tokens.Input(
                    "tokens", tooltip="From Parallel Denoise, or from any step of its trajectory."
                ),
                io.Combo.Input(
                    "fill",
                    options=list(FILLS),
                    default="grey",
                    advanced=True,
                    tooltip="The colour of parts that are still masked.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The picture, or one for each result of a batch."
                ),
                io.Mask.Output(
                    display_name="undecided",
                    tooltip="The parts of the picture that are still masked, as a mask. It is "
                    "empty when the picture is finished.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: HostedModel, tokens: TokenState, fill: str) -> io.NodeOutput:
        if not min(tokens.grid):
            raise InputError("The answer is text alone, without a picture: use Decode Text.")
        model.prepare_decoding(tokens.grid)
        pictures = []
        for index in interruptible(range(tokens.batch)):
            sample = tokens[index : index + 1]
            pictures.append(decode_pixels(model.model, sample, fill=FILLS[fill]))
        undecided = masked_pixels(model.model, tokens).float()
        return io.NodeOutput(to_intermediate(torch.cat(pictures)), to_intermediate(undecided))

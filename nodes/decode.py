"""Decode Text and Decode Image."""

import torch
from comfy_api.latest import io, ui

from ..mmp_core import TokenState, decode_pixels, decode_text
from .host import HostedModel, stop_if_interrupted, to_intermediate
from .live import UNDECIDED
from .types import CATEGORY, Model, Tokens


class DecodeText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMaDAParallelDecodeText",
            display_name="Decode Text",
            category=CATEGORY,
            description="The text of tokens: what the model reasoned while it drew.",
            search_aliases=["mmada", "reasoning", "thinking"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint that the tokens were made with."),
                Tokens.Input("tokens", tooltip="From Parallel Denoise."),
            ],
            outputs=[
                io.String.Output(
                    display_name="text",
                    tooltip=f"The text; {UNDECIDED} stands for an undecided token. Those of a "
                    "batch are separated by empty lines.",
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: HostedModel, tokens: TokenState) -> io.NodeOutput:
        text = "\n\n".join(decode_text(model.model, tokens, masked=UNDECIDED))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class DecodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMaDAParallelDecodeImage",
            display_name="Decode Image",
            category=CATEGORY,
            description="The picture of tokens.",
            search_aliases=["mmada", "vae decode"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint that the tokens were made with."),
                Tokens.Input("tokens", tooltip="From Parallel Denoise."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The picture, or one for each result of a batch. Undecided parts are "
                    "grey.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: HostedModel, tokens: TokenState) -> io.NodeOutput:
        height, width = tokens.grid
        model.prepare_images(height * width * model.model.downsample**2)
        pictures = []
        for index in range(tokens.batch):
            stop_if_interrupted()
            pictures.append(decode_pixels(model.model, tokens[index : index + 1]))
        return io.NodeOutput(to_intermediate(torch.cat(pictures)))

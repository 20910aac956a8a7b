"""Encode Instruction."""

import torch
from comfy_api.latest import io
from PIL import Image

from ..mmp_core import InputError, Prompt, encode_instruction
from .host import HostedModel
from .pictures import masks_for, to_picture
from .types import Model, Schema
from .types import Prompt as PromptType
from .widgets import between


class EncodeInstruction(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelEncodeInstruction",
            display_name="Encode Instruction",
            description="Turns an instruction, and the picture to edit, into a prompt. Without a "
            "picture the model makes a new one from the instruction.",
            search_aliases=["mmada", "edit image", "prompt"],
            inputs=[
                Model.Input("model", tooltip="From Load MMaDA-Parallel."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture to edit. Variant A crops it to the nearest aspect ratio "
                    "that it knows, variant M squeezes it into a square. A batch gives one result "
                    "for each of its pictures. Leave unconnected to make a new picture from the "
                    "instruction alone.",
                ),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    default="make the background blue",
                    tooltip="What to change, or what to show. The model first reasons about it in "
                    "words, while it draws.",
                ),
                io.Int.Input(
                    "width",
                    **between(0, 4096, default=0, step=16),
                    tooltip="Width of the result in pixels. 0: the size at which the model sees "
                    "the input picture, or without one the checkpoint's own size. Set both sides "
                    "or none.",
                ),
                io.Int.Input(
                    "height",
                    **between(0, 4096, default=0, step=16),
                    tooltip="Height of the result in pixels. 0: as for width.",
                ),
                io.Int.Input(
                    "text_length",
                    **between(0, 4096, default=0),
                    advanced=True,
                    tooltip="Number of text tokens the model may use to reason. 0: the "
                    "checkpoint's own length.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Inpainting: only the masked part is drawn anew. All other image "
                    "tokens stay the same; pixels can still change a little, since the whole "
                    "picture is decoded again. The mask is cropped as the picture is.",
                ),
            ],
            outputs=[
                PromptType.Output(
                    display_name="prompt",
                    tooltip="The instruction, the input picture and the masked answer, for "
                    "Parallel Denoise.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HostedModel,
        instruction: str,
        width: int,
        height: int,
        text_length: int,
        image: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        if (width == 0) != (height == 0):
            raise InputError(
                f"The size is {width}x{height}: set both width and height, or leave both at 0."
            )
        pictures = [None] if image is None else [to_picture(pixels) for pixels in image]
        if image is not None:
            model.prepare_encoding(picture.size for picture in pictures if picture)
        masks: list[Image.Image | None] = [None] * len(pictures)
        if mask is not None:
            painted = masks_for(mask, len(pictures)).expand(len(pictures), -1, -1)
            masks = [to_picture(one[..., None]) for one in painted]
        prompts = [
            encode_instruction(
                model.model,
                instruction,
                picture,
                size=(width, height) if width else None,
                text_length=text_length or None,
                mask=painted,
            )
            for picture, painted in zip(pictures, masks, strict=True)
        ]
        return io.NodeOutput(Prompt.stack(prompts))

"""Encode Instruction."""

import torch
from comfy_api.v0_0_2 import io

from ..mmp_core import Prompt, encode_instruction
from ..mmp_core.errors import sentence
from ..mmp_core.fitting import fitted_input, selected_note, strange_note, unseen_note
from ..mmp_core.image.mask_settings import MaskSettings
from ..mmp_core.image.masks import Region
from ..mmp_core.instructions import instruction_notes
from ..mmp_core.options import options_of
from ..mmp_core.variants.registry import VARIANTS
from ..views.mask_overlay import prompt_overlays
from .host import HostedModel, interruptible, stop_if_interrupted
from .pictures import said, to_masks, to_pictures
from .types import Model, Schema
from .types import Prompt as PromptType
from .widgets import between, widget

AUTO = "auto"
AUTOMATIC, OWN = "automatic", "own values"
_MASK = options_of(MaskSettings)


def _tasks() -> list[str]:
    """Those of all families."""
    return list(dict.fromkeys(task for variant in VARIANTS for task in variant.task_names))


class EncodeInstruction(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelEncodeInstruction",
            display_name="Encode Instruction",
            description="Turns an instruction and the picture to edit into a prompt. Without a "
            "picture, the model makes a new one from the instruction.",
            search_aliases=[
                "mmada",
                "edit",
                "edit image",
                "inpaint",
                "mask",
                "generate",
                "image to image",
                "img2img",
                "text to image",
                "txt2img",
                "prompt",
                "negative prompt",
            ],
            inputs=[
                Model.Input("model", tooltip="From Load MMaDA-Parallel."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture to edit. Variant A crops it to the nearest aspect ratio "
                    "that it was trained on; variant M squeezes it into a square. A "
                    "batch gives one result for each of its pictures. Leave unconnected "
                    "to make a new picture from the instruction alone.",
                ),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    default="make the background blue",
                    tooltip="What to change in the picture, or what a new picture shows. The "
                    "model reasons about it in words while it draws.",
                ),
                io.Int.Input(
                    "width",
                    **between(0, 4096, default=0, step=16),
                    tooltip="Width of the result in pixels, rounded to whole image tokens. 0: "
                    "calculated from the height. Both 0: as with size set to automatic.",
                ),
                io.Int.Input(
                    "height",
                    **between(0, 4096, default=0, step=16),
                    tooltip="Height of the result in pixels. 0: calculated from the width.",
                ),
                io.Int.Input(
                    "text_length",
                    **between(0, 4096, default=0),
                    advanced=True,
                    tooltip="Number of text tokens that the model may use to reason. 0: the "
                    "checkpoint's own length.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Inpainting: only the image tokens that the mask selects are drawn "
                    "anew. All others stay, but their pixels are decoded again; Put Back "
                    "restores the pixels of the original. A mask of another size is "
                    "stretched over the picture, and a mask with nothing painted is "
                    "ignored.",
                ),
                *(widget(option, optional=True) for option in _MASK.values()),
                io.Image.Input(
                    "second_image",
                    optional=True,
                    tooltip="The second picture of tasks that take two: with style, the picture "
                    "whose style the first one takes on. Only Lumina-DiMOO has such "
                    "tasks.",
                ),
                io.Combo.Input(
                    "task",
                    options=[AUTO, *_tasks()],
                    default=AUTO,
                    optional=True,
                    tooltip="What to do with the pictures. auto: edit one, take on the style of "
                    "a second one, or generate without any. The others are tasks of "
                    "Lumina-DiMOO; MMaDA-8B knows generate, paint, describe and answer. "
                    "describe: answers the instruction, a question about the picture, in "
                    "words alone. answer: answers a question without a picture. "
                    "dense_prediction: draws the map that the instruction names, such as "
                    "depth map. multi_view: draws the view that it names, such as left. "
                    "paint: draws the masked part anew; the instruction says what the "
                    "whole picture shows.",
                ),
                io.Combo.Input(
                    "size",
                    options=[AUTOMATIC, OWN],
                    default=OWN,
                    optional=True,
                    tooltip="automatic: the size at which the model sees the input picture or, "
                    "without one, the checkpoint's own size, and the checkpoint's own "
                    "text length. own values: the width, height and text_length that you "
                    "set.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="What the result should move away from: an instruction that is used "
                    "in the unconditional branches of guidance. Needs a guidance above 0 "
                    "in Parallel Denoise, and a task that reads its instruction. The "
                    "released checkpoints were not trained with one.",
                ),
            ],
            outputs=[
                PromptType.Output(
                    display_name="prompt",
                    tooltip="The instruction, the input picture and the masked answer, for "
                    "Parallel Denoise.",
                )
            ],
            is_output_node=True,  # so that mask and tokens can be looked at before a run
        )

    @classmethod
    def validate_inputs(cls, instruction: str | None = None, task: str | None = AUTO) -> bool | str:
        """Refuse what is sure to be a mistake when it is queued. None: it is linked."""
        if instruction is None or instruction.strip() or task in (None, "style"):
            return True
        return sentence("The instruction is empty: say what to change, or what to show.")

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
        second_image: torch.Tensor | None = None,
        task: str = AUTO,
        size: str = OWN,
        negative: str = "",
        **mask_choices,
    ) -> io.NodeOutput:
        if size == AUTOMATIC:
            width = height = text_length = 0
        pictures, seconds = to_pictures(image), to_pictures(second_image)
        known = model.model.variant.task_for(
            None if task == AUTO else task, bool(pictures) + bool(seconds)
        )
        read = instruction_notes(model.model, instruction, known)
        if negative.strip():
            read += instruction_notes(model.model, negative, known, "negative instruction")
        settings = MaskSettings(**mask_choices)
        shape = pictures[0].size if pictures else None
        masks, count = to_masks(mask), max(1, len(pictures))
        fitted = fitted_input(
            *(model.model, (width, height), shape, masks, count, settings),
            callback=lambda *_: stop_if_interrupted(),
        )
        if shape:
            sizes = [shape, *(picture.size for picture in seconds[:1])]
            sizes += [_size(region) for region in fitted.regions if region]
            model.prepare_encoding(sizes, known)
        prompts = [
            encode_instruction(
                model.model,
                instruction,
                picture,
                size=fitted.size,
                text_length=text_length or None,
                mask=painted,
                coverage=settings.coverage,
                grow=settings.grow,
                region=region,
                task=known or None,
                reference=seconds[i % len(seconds)] if seconds else None,
                negative=negative,
            )
            for i, (picture, painted, region) in enumerate(
                interruptible(zip(pictures or [None], fitted.masks, fitted.regions, strict=True))
            )
        ]
        prompt = Prompt.stack(prompts)
        strange = strange_note(model.model, prompt, interruptible(pictures), fitted.regions)
        notes = [*read, *strange, *fitted.notes]
        if masks and not pictures:
            notes.append(sentence("The mask is not used, since there is no picture."))
        if not any(fitted.masks):
            return io.NodeOutput(prompt, ui=said(notes, cls))
        overlays = prompt_overlays(prompt, interruptible(pictures), fitted.masks)
        notes += [
            selected_note(prompt.initial),
            sentence("Elsewhere Put Back keeps the original's pixels."),
            *unseen_note(prompt.initial, interruptible(fitted.masks)),
        ]
        return io.NodeOutput(prompt, ui=said(notes, cls, overlays))


def _size(region: Region) -> tuple[int, int]:
    return region[2] - region[0], region[3] - region[1]

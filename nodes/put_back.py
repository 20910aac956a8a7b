"""Put Back."""

import torch
from comfy_api.v0_0_2 import io

from ..mmp_core import InputError, Prompt, TokenState
from ..mmp_core.compositing import put_back_pixels
from ..mmp_core.errors import sentence
from ..mmp_core.image.put_back_settings import Mode, PutBackSettings
from ..mmp_core.options import options_of
from .host import HostedModel, stop_if_interrupted, to_intermediate
from .pictures import said, to_masks, to_pictures
from .types import Model, Schema, Tokens
from .types import Prompt as PromptType
from .widgets import widget


class PutBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelPutBack",
            display_name="Put Back (MMaDA)",
            category="MMaDA-Parallel/pictures",
            description="Places the result on the original, at the original's full resolution. "
            "Everything that was not edited stays as it was, bit for bit.",
            search_aliases=["mmada", "composite", "stitch", "paste", "full resolution"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint that made the result."),
                PromptType.Input(
                    "prompt",
                    tooltip="The prompt that was given to Parallel Denoise. It holds what the "
                    "model's picture showed and where it lies in the original.",
                ),
                io.Image.Input(
                    "original",
                    tooltip="The picture that was given to Encode Instruction, or the same "
                    "picture in another size.",
                ),
                Tokens.Input(
                    "tokens",
                    optional=True,
                    tooltip="The result of Parallel Denoise. Parts that are still masked are not "
                    "put back.",
                ),
                io.Image.Input(
                    "result",
                    optional=True,
                    tooltip="The result as a picture of any size, from Decode Image or after "
                    "other nodes. It is used instead of tokens.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the result may show, stretched over the whole original. A "
                    "mask with nothing painted is ignored.",
                ),
                *map(widget, options_of(PutBackSettings).values()),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The edited original. It is larger than the original where the "
                    "canvas was extended.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The area that was replaced; where it is 0, the pixels are the "
                    "original's. You can edit it and connect it to mask, with mode set "
                    "to mask.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HostedModel,
        prompt: Prompt,
        original: torch.Tensor,
        tokens: TokenState | None = None,
        result: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        **choices,
    ) -> io.NodeOutput:
        settings, masks = PutBackSettings(**choices), to_masks(mask)
        results = _results(tokens, result)
        if len(results) % prompt.batch:
            raise InputError(
                f"There are {len(results)} results for a prompt of {prompt.batch} pictures: use "
                "the prompt that they were made with."
            )
        model.prepare_decoding(prompt.initial.grid)
        pictures, areas = [], []
        for i, one in enumerate(results):
            stop_if_interrupted()
            sample = i * prompt.batch // len(results)
            pixels = original[_index(i, sample, len(original), len(results), prompt.batch)]
            painted = None
            if masks:
                painted = masks[_index(i, sample, len(masks), len(results), prompt.batch)]
            picture, area = put_back_pixels(
                model.model,
                prompt[sample : sample + 1],
                pixels.cpu().numpy(),
                one,
                mask=painted,
                mode=settings.mode,
                settings=settings,
                callback=lambda *_: stop_if_interrupted(),
                tell=stop_if_interrupted,
            )
            pictures.append(torch.from_numpy(picture))
            areas.append(torch.from_numpy(area).float() / 255)
        if len({area.shape for area in areas}) > 1:
            raise InputError("The results have several sizes: put back one at a time.")
        note = _replaced([float((area > 0).float().mean()) for area in areas], settings.mode)
        output = to_intermediate(torch.stack(pictures)), to_intermediate(torch.stack(areas))
        return io.NodeOutput(*output, ui=said([note], cls))


def _replaced(shares: list[float], mode: Mode) -> str:
    """How much of each result's pixels is replaced, in a sentence. ``shares``: from 0 to 1."""
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    if not max(shares):
        if mode != "changed":
            return sentence("No pixel is replaced.")
        return sentence(
            "No pixel is replaced: the result shows no change of what the model saw. A lower "
            "threshold finds weaker changes."
        )
    if low == high:
        return sentence(f"{high} of the pixels are replaced, the others are the original's.")
    return sentence(
        f"Between {low} and {high} of the pixels are replaced, the others are the original's."
    )


def _results(tokens: TokenState | None, result: torch.Tensor | None) -> list:
    if result is not None:
        return to_pictures(result)
    if tokens is None:
        raise InputError("Nothing to put back: connect tokens or result.")
    return [tokens[i : i + 1] for i in range(tokens.batch)]


def _index(result: int, sample: int, there: int, results: int, samples: int) -> int:
    """Which of ``there`` pictures or masks belongs to a result: one for each result, one for each
    sample of the prompt, or as many as there are in turn."""
    return sample if there == samples != results else result % there

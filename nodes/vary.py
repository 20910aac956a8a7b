"""Vary, a result of which a share is drawn again, and Several Instructions."""

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mmp_core import MASKED, InputError, Prompt, SamplerSettings, TokenState
from ..mmp_core import Trajectory as Steps
from ..mmp_core.batching import samples_at_once
from ..mmp_core.errors import sentence
from ..mmp_core.memory import denoising_estimate
from ..mmp_core.variation import confidence_in, predicted_confidence, varied
from .denoise import started
from .host import HostedModel, stop_if_interrupted
from .pictures import said
from .types import Model, Schema, Tokens, Trajectory
from .types import Prompt as PromptType
from .widgets import between


class Vary(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def share(name: str, default: float, what: str) -> io.Float.Input:
            return io.Float.Input(
                name,
                **between(0.0, 1.0, default=default, step=0.05),
                display_mode=io.NumberDisplay.slider,
                tooltip=f"Share of the {what} to denoise again, beginning with those that the "
                f"model was least sure of. 0: the {name} stays. 1: all of it is denoised again.",
            )

        return Schema(
            node_id="MMaDAParallelVary",
            display_name="Vary (MMaDA)",
            category="MMaDA-Parallel/tokens",
            description="Makes variations of one result: masks a share of its text and picture "
            "again, the least certain tokens first, for Parallel Denoise to draw "
            "with another seed.",
            search_aliases=["mmada", "strength", "denoise strength", "variation", "variations"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint that made the tokens."),
                PromptType.Input("prompt", tooltip="The prompt that the tokens were made from."),
                Tokens.Input("tokens", tooltip="The result to vary, from Parallel Denoise."),
                share("picture", 0.4, "image tokens"),
                share("text", 0.0, "words"),
                Trajectory.Input(
                    "trajectory",
                    optional=True,
                    tooltip="The run that made the tokens: it tells how sure the model was of "
                    "each. Leave unconnected for tokens from a file: the model is then "
                    "asked once how sure it is of each token.",
                ),
            ],
            outputs=[
                Tokens.Output(
                    display_name="tokens",
                    tooltip="For the tokens input of a Parallel Denoise with another seed.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HostedModel,
        prompt: Prompt,
        tokens: TokenState,
        picture: float,
        text: float,
        trajectory: Steps | None = None,
    ) -> io.NodeOutput:
        if trajectory is not None:
            confidence = confidence_in(trajectory)
        else:
            prompt = started(prompt, tokens)
            settings = SamplerSettings(joint_guidance=0.0, text_steps=1, image_steps=1)
            estimate = denoising_estimate(model.model, prompt, settings, record=0)
            budget = model.memory_budget(prompt, previews=False)
            samples_at_once(model.model, prompt, settings, estimate, budget)
            budget.prepare(estimate, 1)
            confidence = predicted_confidence(
                model.model, prompt, tokens, callback=lambda *_: stop_if_interrupted()
            )
        end = model.model.layout.end_of_text
        changed = varied(tokens, confidence, text=text, image=picture, end_of_text=end)
        counts = [
            sentence(f"{_drawn(before, after)} of {before.numel()} text tokens")
            if before is tokens.text
            else sentence(f"{_drawn(before, after)} of {before.numel()} image tokens")
            for before, after in ((tokens.image, changed.image), (tokens.text, changed.text))
            if before.numel()
        ]
        note = sentence(f"Drawn again: {', '.join(counts)}.")
        return io.NodeOutput(changed, ui=said([note], cls))


def _drawn(before: Tensor, after: Tensor) -> int:
    return int(((after == MASKED) & (before != MASKED)).sum())


class Instructions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelInstructions",
            display_name="Several Instructions (MMaDA)",
            category="MMaDA-Parallel/pictures",
            description="A list of instructions, one per line. Everything that follows runs once "
            "for each, and Parallel Denoise shows all results.",
            search_aliases=[
                "mmada",
                "instruction list",
                "prompt list",
                "batch of prompts",
                "batch",
            ],
            inputs=[
                io.String.Input(
                    "instructions",
                    multiline=True,
                    default="make the background blue",
                    tooltip="One instruction per line. Empty lines are ignored.",
                )
            ],
            outputs=[
                io.String.Output(
                    display_name="instruction",
                    is_output_list=True,
                    tooltip="For instruction of Encode Instruction. If there is a list of "
                    "pictures, too, the first instruction goes with the first picture, "
                    "and so on; the last entry of the shorter list is repeated.",
                )
            ],
        )

    @classmethod
    def execute(cls, instructions: str) -> io.NodeOutput:
        lines = [line.strip() for line in instructions.splitlines() if line.strip()]
        if not lines:
            raise InputError("There is no instruction: write one on each line.")
        return io.NodeOutput(lines)

"""Parallel Denoise."""

from comfy_api.latest import io

from ..mmp_core import InputError, Prompt, SamplerSettings, TokenState
from ..mmp_core.batching import denoise_in_batches
from .host import HostedModel, Progress
from .live import LiveView
from .types import CATEGORY, Model, Tokens, Trajectory
from .types import Prompt as PromptType

_RECOMMENDED = {
    "text_steps": 0,
    "image_steps": 0,
    "joint_guidance": -1.0,
    "text_guidance": -1.0,
    "image_guidance": -1.0,
    "reasoning_guidance": -1.0,
}
"""The widget values that leave a setting to the preset."""


class ParallelDenoise(io.ComfyNode):
    HAS_INTERMEDIATE_OUTPUT = True
    """The viewer's data is sent again when the node is cached (ComfyUI 0.19 on)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMaDAParallelDenoise",
            display_name="Parallel Denoise",
            category=CATEGORY,
            description="Decides the text and the picture together, a few tokens per step, each "
            "seeing the other. Shows both while they form.",
            search_aliases=["mmada", "sampler", "thinking"],
            inputs=[
                Model.Input("model", tooltip="From Load MMaDA-Parallel."),
                PromptType.Input("prompt", tooltip="From Encode Instruction."),
                Tokens.Input(
                    "tokens",
                    optional=True,
                    tooltip="Where to start from. Decided tokens stay as they are, undecided ones "
                    "are denoised. Leave open to start from nothing.",
                ),
                *_main_inputs(),
                *_advanced_inputs(),
            ],
            outputs=[
                Tokens.Output(
                    display_name="tokens",
                    tooltip="The decided text and picture, for Decode Text and Decode Image.",
                ),
                Trajectory.Output(
                    display_name="trajectory",
                    tooltip="Every step of the run: what was decided, when, and how surely.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: HostedModel,
        prompt: Prompt,
        seed: int,
        batch_size: int,
        preset: str,
        preview_every: int,
        record_steps: int,
        tokens: TokenState | None = None,
        **choices,
    ) -> io.NodeOutput:
        settings = settings_of(model.model.variant, preset, seed, **choices)
        prompt = started(prompt, tokens).repeat(batch_size)
        view = LiveView(model.model, Progress(cls.hidden.unique_id), preview_every)
        trajectory = denoise_in_batches(
            model.model,
            prompt,
            settings,
            budget=model.memory_budget(prompt, previews=preview_every > 0),
            callback=view,
            on_batch=lambda samples: view.part(samples, prompt.batch),
            record=record_steps,
        )
        view.finish(trajectory)
        return io.NodeOutput(trajectory.final, trajectory, ui=view.recorded(trajectory))


def _main_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The same seed gives the same text and picture again. A batch uses seed, "
            "seed + 1, …",
        ),
        io.Int.Input(
            "text_steps",
            default=0,
            min=0,
            max=4096,
            tooltip="Steps that decide text; more are slower and more careful. 0: recommended "
            "(128, or one per token of a shorter text).",
        ),
        io.Int.Input(
            "image_steps",
            default=0,
            min=0,
            max=4096,
            tooltip="Steps that decide the picture, among the same steps. 0: recommended (30).",
        ),
        io.Float.Input(
            "joint_guidance",
            display_name="guidance",
            default=-1.0,
            min=-1.0,
            max=100.0,
            step=0.1,
            tooltip="How strongly the picture follows instruction and input picture together. "
            "0 is off and up to twice as fast. -1: recommended (3.5).",
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=64,
            tooltip="Results to make of each prompt, with seeds counting up: all at once where "
            "memory allows, else in parts. That does not change them.",
        ),
    ]


def _advanced_inputs() -> list[io.Input]:
    def guidance(name: str, tooltip: str) -> io.Float.Input:
        return io.Float.Input(
            name,
            default=-1.0,
            min=-1.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip=f"{tooltip} 0: off. -1: recommended (off, unless the preset says otherwise).",
        )

    def temperature(name: str, default: float, tooltip: str) -> io.Float.Input:
        return io.Float.Input(
            name,
            default=default,
            min=0.0,
            max=10.0,
            step=0.05,
            advanced=True,
            tooltip=tooltip,
        )

    return [
        guidance("text_guidance", "How strongly the picture follows the instruction."),
        guidance("image_guidance", "How strongly the picture follows the input picture."),
        guidance("reasoning_guidance", "How strongly the text follows instruction and picture."),
        temperature("text_temperature", 0.0, "Variety of the text. 0: always the likeliest word."),
        temperature(
            "image_temperature",
            1.0,
            "Variety of the picture: noise on which tokens are kept first. 0: the likeliest "
            "tokens, always the same picture.",
        ),
        io.Combo.Input(
            "remasking",
            options=["low_confidence", "random"],
            default="low_confidence",
            advanced=True,
            tooltip="Which text tokens stay undecided longer: those the model is least sure of, "
            "or random ones.",
        ),
        io.Combo.Input(
            "preset",
            options=["corrected", "upstream"],
            default="corrected",
            advanced=True,
            tooltip="corrected: the method as published. upstream: the released code with all "
            "its quirks, token for token; recommended values are then its own.",
        ),
        io.Int.Input(
            "preview_every",
            default=1,
            min=0,
            max=4096,
            advanced=True,
            tooltip="Show the picture while it forms every so many steps, at most twice a second. "
            "0: no pictures, only text and progress.",
        ),
        io.Combo.Input(
            "order",
            options=["parallel", "text_first", "image_first"],
            default="parallel",
            tooltip="parallel: text and picture form together, each seeing the other. text_first: "
            "think, then draw, as other thinking models do. image_first: draw, then explain.",
        ),
        io.Int.Input(
            "record_steps",
            default=128,
            min=0,
            max=4096,
            advanced=True,
            tooltip="At most so many steps are kept in the trajectory, evenly spread: about 30 KB "
            "each for a picture of 512x512 pixels and 256 words. 0: none.",
        ),
        io.Combo.Input(
            "speed",
            options=["exact", "fast", "cached", "fastest"],
            default="exact",
            tooltip="fast: what the model is at least 90 % sure of is decided at once, and steps "
            "to which nothing is left are not run. How much that saves depends on the picture. "
            "cached: what has hardly changed since an earlier step is not computed again; needs "
            "more memory. fastest: both. All but exact give other results.",
        ),
    ]


def settings_of(variant: str, preset: str, seed: int, **choices) -> SamplerSettings:
    """Settings from widget values; those that mean "recommended" are left to the preset."""
    chosen = {n: value for n, value in choices.items() if value != _RECOMMENDED.get(n)}
    if preset == "upstream":
        return SamplerSettings.upstream(variant, seed=seed, **chosen)
    return SamplerSettings(seed=seed, **chosen)


def started(prompt: Prompt, tokens: TokenState | None) -> Prompt:
    """``prompt`` with ``tokens`` to start from, repeated to their batch."""
    if tokens is None:
        return prompt
    if tokens.batch % prompt.batch:
        raise InputError(
            f"The tokens are a batch of {tokens.batch}, the prompt one of {prompt.batch}: use the "
            "prompt that the tokens were made with."
        )
    return prompt.repeat(tokens.batch // prompt.batch).starting_from(tokens)

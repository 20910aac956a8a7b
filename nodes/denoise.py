"""Parallel Denoise."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

from comfy_api.v0_0_2 import io

from ..mmp_core import InputError, Prompt, SamplerSettings, TokenState
from ..mmp_core.batching import chosen_in_batches, denoise_in_batches
from ..mmp_core.checkpoint.tokens import load_tokens
from ..mmp_core.errors import sentence
from ..mmp_core.files import readable_size
from ..mmp_core.memory import denoising_estimate
from ..mmp_core.options import options_of
from ..mmp_core.sampler.guidance import opposes
from ..mmp_core.sampler.settings import GUIDANCES, PROFILED, Profile, Target
from ..mmp_core.variants.base import Variant
from .host import HostedModel, Interrupted, Progress, folders, keep, stoppable, stops
from .live import LiveView
from .types import Model, Schema, Tokens, Trajectory
from .types import Prompt as PromptType
from .widgets import MOST_SEED, between, widget

_RECOMMENDED = {
    "text_steps": 0,
    "image_steps": 0,
    "joint_guidance": -1.0,
    "text_guidance": -1.0,
    "image_guidance": -1.0,
    "reasoning_guidance": -1.0,
    "block_length": -1,
}
"""The widget values that leave a setting to the preset, as in workflows of before ``profile``."""
Choice = Profile | Literal["own values"]
OWN: Literal["own values"] = "own values"
_LARGE = 10**9
"""Bytes of weights from which on a run is long enough to think of its speed."""


class ParallelDenoise(io.ComfyNode):
    HAS_INTERMEDIATE_OUTPUT = True
    """The viewer's data is sent again when the node is cached (ComfyUI 0.19 on)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelDenoise",
            display_name="Parallel Denoise",
            description="Unmasks text and picture together, a few tokens per step, each seeing "
            "the other. Shows both while they form.",
            search_aliases=[
                "mmada",
                "sampler",
                "seed",
                "think",
                "thinking",
                "reasoning",
                "denoise",
                "parallel",
            ],
            inputs=[
                Model.Input("model", tooltip="From Load MMaDA-Parallel."),
                PromptType.Input("prompt", tooltip="From Encode Instruction."),
                Tokens.Input(
                    "tokens",
                    optional=True,
                    tooltip="Tokens to start from. Masked tokens are denoised, all others stay "
                    "as they are. Leave unconnected to start with everything masked.",
                ),
                *_widgets(),
            ],
            outputs=[
                Tokens.Output(
                    display_name="tokens",
                    tooltip="The finished text and picture, for Decode Text and Decode Image.",
                ),
                Trajectory.Output(
                    display_name="trajectory",
                    tooltip="The recorded steps of the run: which tokens were unmasked when, and "
                    "with what confidence.",
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
        go_on_from: str = "",
        profile: Choice = OWN,
        at_most_seconds: float = 0.0,
        at_most_operations: float = 0.0,
        **choices,
    ) -> io.NodeOutput:
        variant = model.model.variant
        own = model.model.config
        settings = settings_of(variant, preset, seed, prompt.task, profile, own, **choices)
        target, choice = Target(at_most_seconds, at_most_operations), None
        progress = Progress(cls.hidden.unique_id)
        with stoppable(progress) as run:
            prompt = _prompt_of(model, prompt, batch_size, tokens, kept_file(go_on_from, run.item))
            if target:
                budget = model.memory_budget(prompt, previews=preview_every > 0)
                choice = chosen_in_batches(model.model, prompt, settings, target, budget)
                settings = choice.settings
            tip = "" if choice else _tip(model, prompt, settings)
            used = used_settings(variant, settings, prompt, "target" if choice else profile)
            if choice:
                used = f"{used} {choice.expected()}"
            view = LiveView(model.model, progress, preview_every, run, used)
            began = time.perf_counter()
            try:
                trajectory = denoise_in_batches(
                    model.model,
                    prompt,
                    settings,
                    budget=model.memory_budget(
                        prompt, previews=preview_every > 0, tell=lambda cost: view.say(cost + tip)
                    ),
                    callback=view,
                    on_batch=lambda samples: view.part(samples, prompt.batch),
                    record=record_steps,
                    picture=model.picture_bytes(prompt.initial.grid, previews=preview_every > 0),
                )
            except Interrupted:
                reached = view.reached(prompt.initial)
                if reached and (kept := keep(model, reached)):
                    view.show_kept(reached, kept)
                raise
            if choice:
                took = choice.took(trajectory.operations, time.perf_counter() - began)
                view.used = f"{view.used} {took}"
            kept = run.keep_if_stopped(model, trajectory.final)
        view.finish(trajectory)
        return io.NodeOutput(trajectory.final, trajectory, ui=view.recorded(trajectory, kept))

    @classmethod
    def fingerprint_inputs(cls, **_):
        return stops[cls.hidden.unique_id]


def _tip(model: HostedModel, prompt: Prompt, settings: SamplerSettings) -> str:
    """Where ``cached`` would pay: for a large model that computes every position at every step."""
    if model.weights < _LARGE or settings.speed != "exact" or settings.preset != "corrected":
        return ""
    exact, cached = (
        denoising_estimate(model.model, prompt, replace(settings, speed=speed)).total(1)
        for speed in ("exact", "cached")
    )
    more = readable_size(cached - exact)
    tip = sentence(
        f"With speed cached the arithmetic would be about a sixth, for {more} more per sample."
    )
    return f" {tip}"


def kept_file(names: str, item: int) -> str:
    """The file to go on from for an item of a list: one line each, an empty one for none."""
    lines = names.split("\n")
    return lines[item].strip() if item < len(lines) else ""


def _prompt_of(
    model: HostedModel, prompt: Prompt, batch_size: int, tokens: TokenState | None, kept: str
) -> Prompt:
    """What to denoise: ``kept``, the file of a run that ended early, is the whole batch already."""
    if not kept:
        return started(prompt, tokens).repeat(batch_size)
    model.prepare_decoding(prompt.initial.grid)
    return started(prompt, load_tokens(folders.token_file(kept), model.model))


def _widgets() -> list[io.Input]:
    options = options_of(SamplerSettings)

    def recommended(name: str, **changes) -> io.Input:
        """The widget of a setting that has a value more, for the preset's own."""
        option, value = options[name], _RECOMMENDED[name]
        text = f"{option.help} Set by profile. {value:g} in older workflows means recommended."
        return widget(option, low=value, help=text, **changes)

    def setting(name: str, **changes) -> io.Input:
        return widget(options[name], **changes)

    return [
        io.Int.Input(
            "seed",
            **between(0, MOST_SEED, default=0),
            control_after_generate=True,
            tooltip="The same seed gives the same text and picture again. A batch uses seed, "
            "seed + 1, …",
        ),
        recommended("text_steps"),
        recommended("image_steps"),
        recommended("joint_guidance", display_name="guidance"),
        io.Int.Input(
            "batch_size",
            **between(1, 64, default=1),
            tooltip="How many results to make of each prompt, with seeds counting up. They are "
            "made all at once if memory allows, or else in smaller batches, which does "
            "not change them.",
        ),
        *(recommended(f"{name}_guidance") for name in ("text", "image", "reasoning")),
        *map(setting, ("text_temperature", "image_temperature", "remasking", "preset")),
        io.Int.Input(
            "preview_every",
            **between(0, 4096, default=1),
            advanced=True,
            tooltip="Number of steps between two previews of the picture. There are at most two "
            "previews a second, and they take at most a twentieth of the run. 0: no "
            "pictures, only text and progress.",
        ),
        setting("order"),
        io.Int.Input(
            "record_steps",
            **between(0, 4096, default=128),
            advanced=True,
            tooltip="The largest number of steps that the trajectory keeps, evenly spread. Each "
            "takes about 30 KB for a picture of 512x512 pixels and 256 words. 0: none.",
        ),
        setting("speed"),
        io.String.Input(
            "go_on_from",
            default="",
            optional=True,
            socketless=True,
            advanced=True,
            extra_dict={"hidden": True},
            tooltip="A file of tokens, as Load Tokens lists it, to continue from instead of "
            "starting anew; for a list, one file per line. The viewer's button sets it "
            "for one run.",
        ),
        recommended("block_length", optional=True),
        io.Combo.Input(
            "profile",
            options=[*get_args(Profile), OWN],
            default=OWN,
            optional=True,
            tooltip="Sets steps, guidance, block length and preset. recommended: what the "
            "checkpoint's family recommends for the task. quick look: the same with a "
            "quarter of the steps. reference: the released code with its own values. own "
            "values: what you set in the widgets; changing one of them switches to this.",
        ),
        *(widget(option, optional=True) for option in options_of(Target).values()),
    ]


def settings_of(
    variant: Variant,
    preset: str,
    seed: int,
    task: str = "",
    profile: Choice = OWN,
    config: Mapping[str, Any] | None = None,
    **choices,
) -> SamplerSettings:
    """Settings from widget values. Those that ``profile`` sets are the family's, or the
    checkpoint's with this ``config``; of ``own values`` those that mean "recommended" are left to
    the preset and the task."""
    of_profile = partial(SamplerSettings.of_profile, variant=variant, config=config)
    if profile != OWN:
        own = {name: value for name, value in choices.items() if name not in PROFILED}
        return of_profile(profile, task=task, **own, seed=seed)
    chosen = {n: value for n, value in choices.items() if value != _RECOMMENDED.get(n)}
    for name, value in chosen.items():
        if name in _RECOMMENDED and value < 0:
            raise InputError(f"{name} is {value:g}: give 0 or more, or set profile to recommended.")
    base = "reference" if preset == "upstream" else "recommended"
    return of_profile(base, task=task, **chosen, seed=seed)


def used_settings(variant: Variant, settings: SamplerSettings, prompt: Prompt, profile: str) -> str:
    """What a run of ``prompt`` uses, in a sentence for the node."""
    words = [sentence(f"{settings.text_steps} text steps")] * (prompt.initial.text.shape[1] > 0)
    if min(prompt.initial.grid):
        words.append(sentence(f"{settings.image_steps} image steps"))
    for name in GUIDANCES:
        scale = getattr(settings, name)
        named = {
            "joint_guidance": sentence(f"guidance {scale:g}"),
            "text_guidance": sentence(f"text guidance {scale:g}"),
            "image_guidance": sentence(f"image guidance {scale:g}"),
            "reasoning_guidance": sentence(f"reasoning guidance {scale:g}"),
        }
        words += [named[name]] * bool(scale)
    if profile == "target" and not any(getattr(settings, name) for name in GUIDANCES):
        words.append(sentence("no guidance"))
    words += [sentence(f"blocks of {settings.block_length}")] * (settings.block_length > 0)
    words += [settings.preset] * (settings.preset != "corrected")
    words += [sentence(f"speed {settings.speed}")] * (settings.speed != "exact")
    listed = ", ".join(words)
    used = {
        "recommended": sentence(f"Recommended for {variant.name}: {listed}."),
        "quick look": sentence(f"Quick look for {variant.name}: {listed}."),
        "reference": sentence(f"Reference for {variant.name}: {listed}."),
        "target": sentence(f"For the target: {listed}."),
        OWN: sentence(f"Used: {listed}."),
    }[profile]
    if prompt.negative is None or opposes(prompt, settings):
        return used
    note = sentence("The negative instruction is not used, since guidance is off.")
    return f"{used} {note}"


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

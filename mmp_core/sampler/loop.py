"""The denoising loop: asks the policies at each step and records what they did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from ..errors import InputError
from ..options import Option, python_number
from ..outside import check_kind, check_model
from ..state import MASKED, Prompt, Step, Trajectory
from .policies import DenoisingModel, Policies, corrected_policies
from .predictor import BranchOutputs, Predictor
from .schedule import spread
from .selection import TokenUpdate
from .settings import SamplerSettings
from .upstream import upstream_policies

PRESETS: dict[str, Callable[[DenoisingModel, Prompt, SamplerSettings], Policies]] = {
    "corrected": corrected_policies,
    "upstream": upstream_policies,
}

_RECORD = Option(int, None, "", low=0, name="record")

Callback = Callable[[int, int, Step], "bool | None"]
"""Step index from 0, number of steps, the step. Returns true to stop after this step; may raise."""


@torch.no_grad()
def denoise(
    model: DenoisingModel,
    prompt: Prompt,
    settings: SamplerSettings | None = None,
    *,
    policies: Policies | None = None,
    callback: Callback | None = None,
    record: int | None = None,
) -> Trajectory:
    """Unmask all masked tokens of ``prompt.initial``, text and image in parallel.

    ``policies`` replaces what ``settings`` stands for. ``callback`` is called after each step;
    where it stops the run early, the trajectory has the steps so far, and ``final`` is still masked
    in part.
    ``record``: at most so many steps are kept in the trajectory, evenly spread and the last one
    always; ``None`` keeps all, 0 none. Tensors stay on the model's device.

    Raises ``InputError`` for settings or tokens that do not fit the model, and ``NotFinite`` where
    its hidden states are not finite: in the first step at once, else at the end.
    """
    check_given(model, prompt, settings, callback, record)
    check_kind(policies, Policies | None, "policies", "policies of the sampler")
    if settings is None:
        config = getattr(model, "config", None)
        settings = SamplerSettings.of_profile("recommended", model.variant, prompt.task, config)
    prompt = prompt.to(model.device)
    _check_tokens(model, prompt, settings)
    policies = policies or PRESETS[settings.preset](model, prompt, settings)
    predictor = Predictor(
        model.transformer, model.layout, policies.guidance.branches, policies.cache
    )
    last = Step.before(prompt.initial)
    steps, total = [], len(policies.plan)
    recorded = range(total) if record is None else spread(min(record, total), 0, total)
    for index in range(total):
        last = take_step(predictor, policies, index, last)
        if index in recorded:
            steps.append(last)
        if callback and callback(index, total, last) and index + 1 < total:
            predictor.check_finite(last.state)
            if recorded and index not in recorded:
                steps.append(last)
            ended = last.after, index + 1, predictor.operations
            return Trajectory(tuple(steps), prompt.initial, *ended)
    predictor.check_finite(last.state)
    final = policies.selection.finish(last.after, last.guess)
    return Trajectory(tuple(steps), prompt.initial, final, total, predictor.operations)


def check_given(
    model: DenoisingModel,
    prompt: Prompt,
    settings: SamplerSettings | None,
    callback: Callback | None,
    record: int | None,
) -> None:
    """Raise ``InputError`` for what :func:`denoise` cannot be given."""
    check_model(model, "transformer", "layout", "device")
    _RECORD.check(python_number(record))
    check_kind(settings, SamplerSettings | None, "settings", "settings of the sampler")
    check_kind(prompt, Prompt, "prompt", "a prompt")
    check_kind(callback, Callable | None, "callback", "a function")
    if not prompt.batch:
        raise InputError("The prompt is a batch of 0: give one of at least one sample.")


def take_step(predictor: Predictor, policies: Policies, index: int, last: Step) -> Step:
    """The step at position ``index`` of the plan, from the state after ``last``."""
    guidance, selection, state = policies.guidance, policies.selection, last.after
    targets = policies.plan.targets(index, last)
    outputs = BranchOutputs(predictor, state, targets)
    text = TokenUpdate.none(state.text, last.guess.text, last.text_confidence)
    if targets.text:
        text = selection.text(targets.text, text, partial(guidance.text_logits, outputs))
    updated = replace(state, text=text.after)
    codes = (state.image, last.guess.image, last.image_confidence)
    image = TokenUpdate.none(*(tokens.flatten(1) for tokens in codes))
    if targets.image:
        logits = partial(guidance.image_logits, outputs, updated)
        image = selection.image(targets.image, image, logits)
    grid = state.image.shape
    return Step(
        index=index,
        state=state,
        guess=replace(state, text=text.guess, image=image.guess.view(grid)),
        after=replace(state, text=text.after, image=image.after.view(grid)),
        text_revealed=text.revealed,
        image_revealed=image.revealed.view(grid),
        text_confidence=text.confidence,
        image_confidence=image.confidence.view(grid),
    )


def _check_tokens(model: DenoisingModel, prompt: Prompt, settings: SamplerSettings) -> None:
    """Raise ``InputError`` for a prompt of another family, and for tokens that the model does not
    know, or that are no text."""
    layout, ids = model.layout, model.transformer.config.embedding_size
    if prompt.task:  # a layout's own prompts name none
        model.variant.check_prompt(prompt.task)
    if prompt.negative is not None and settings.preset == "upstream":
        raise InputError(
            "The upstream preset has no negative instruction, as the released code has none: leave "
            "it empty, or use the corrected preset."
        )
    text, codes = prompt.initial.text, layout.codebook_size
    for name, tokens, low, end in (
        ("image", prompt.initial.image, MASKED, codes),
        ("text", text, MASKED, ids),
        ("instruction", prompt.instruction, 0, ids),
        ("instruction's template", prompt.unconditional, 0, ids),
        ("negative instruction", prompt.negative, 0, ids),
        ("input image", prompt.image, 0, codes),
        ("second input image", prompt.reference, 0, codes),
    ):
        if tokens is None or not tokens.numel():
            continue
        least, most = int(tokens.min()), int(tokens.max())
        if not low <= least <= most < end:
            raise InputError(
                f"The {name} has tokens from {least} to {most}; this checkpoint knows 0 to "
                f"{end - 1}: they were made by or for another checkpoint."
            )
    wrong = text == layout.mask_id
    if settings.preset != "upstream":  # whose text may be any id but the mask
        wrong |= (text >= layout.image_offset) & (text < layout.image_offset + codes)
    if wrong.any():
        token = int(text[wrong][0])
        kind = "the mask's id" if token == layout.mask_id else "an image code"
        raise InputError(f"The text holds {token}, which is {kind} and not text: mask it instead.")

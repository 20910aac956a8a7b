"""Guidance: which forms of the prompt are run, and how their logits are combined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..model.kernels import ImageLogits, TextLogits
from ..state import Prompt, TokenState
from ..variants.base import Layout, ModelInput
from .predictor import BranchOutputs
from .settings import SamplerSettings

CONDITIONAL = "conditional"


class Guidance(Protocol):
    """Logits of undecided positions, as the selection of the same preset takes them.

    ``branches``: what the predictor must be able to run.
    """

    branches: Mapping[str, ModelInput]
    text_choices: slice
    """The ids that text is chosen from."""

    def text_logits(self, outputs: BranchOutputs, index: Tensor) -> Tensor | TextLogits:
        """(B, n, text_choices) at text positions ``index`` (B, n)."""
        ...

    def image_logits(
        self, outputs: BranchOutputs, updated: TokenState, index: Tensor
    ) -> Tensor | ImageLogits:
        """(B, n, codebook_size) at image positions ``index`` (B, n).

        ``updated``: the state of ``outputs`` with the text revealed at this step.
        """
        ...


class CorrectedGuidance:
    """``cond + Σ scale·(cond - branch)`` in float32, all branches on one and the same state.

    A branch replaces the whole prompt. One whose scale is 0, or that has nothing to drop, is not
    run; without an input image there is none to drop, so the joint branch is the one without the
    instruction.
    """

    def __init__(self, layout: Layout, prompt: Prompt, settings: SamplerSettings):
        has_image = prompt.image is not None
        image_scales = {
            (True, False): settings.text_guidance,
            (False, True): settings.image_guidance,
            (True, True): settings.joint_guidance,
        }
        text_scales = {(True, True): settings.reasoning_guidance}
        self.text_choices = slice(layout.text_choices.start, layout.text_choices.stop)
        self.branches = {CONDITIONAL: layout.model_input(prompt, prompt.initial)}
        self.image_scales = self._add(layout, prompt, _merged(image_scales, has_image))
        self.text_scales = self._add(layout, prompt, _merged(text_scales, has_image))

    def _add(self, layout: Layout, prompt: Prompt, scales: dict) -> dict[str, float]:
        named = {}
        for (drop_text, drop_image), scale in scales.items():
            name = f"without{' text' * drop_text}{' image' * drop_image}"
            branch = layout.model_input(
                prompt, prompt.initial, drop_text=drop_text, drop_image=drop_image
            )
            if not torch.equal(branch.ids, self.branches[CONDITIONAL].ids):
                self.branches[name], named[name] = branch, scale
        return named

    def text_logits(self, outputs: BranchOutputs, index: Tensor) -> TextLogits:
        branches = (CONDITIONAL, *self.text_scales)
        return TextLogits(
            outputs.predictor.transformer,
            tuple(outputs.text_hidden(name, index) for name in branches),
            tuple(self.text_scales.values()),
            self.text_choices,
        )

    def image_logits(
        self, outputs: BranchOutputs, updated: TokenState, index: Tensor
    ) -> ImageLogits:
        branches = (CONDITIONAL, *self.image_scales)
        logits = tuple(outputs.image_logits(name, index) for name in branches)
        return ImageLogits(logits, tuple(self.image_scales.values()))


def _merged(scales: Mapping[tuple[bool, bool], float], has_image: bool) -> dict:
    """Scales per distinct branch that is not the conditional one and not scaled by 0."""
    merged: dict[tuple[bool, bool], float] = {}
    for (drop_text, drop_image), scale in scales.items():
        branch = (drop_text, drop_image and has_image)
        if any(branch):
            merged[branch] = merged.get(branch, 0.0) + scale
    return {branch: scale for branch, scale in merged.items() if scale}

"""Guidance: which forms of the prompt are run, and how their logits are combined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..model.kernels import ImageLogits, TextLogits
from ..state import Prompt, TokenState
from ..variants.base import Layout, ModelInput
from .predictor import BranchOutputs
from .settings import SamplerSettings

CONDITIONAL = "conditional"

Text = TypeVar("Text", covariant=True)
Image = TypeVar("Image", covariant=True)
Drops = tuple[bool, bool]
"""What an unconditional branch lacks: the instruction, the input image."""
_NAMES: dict[Drops, str] = {
    (True, False): "without text",
    (False, True): "without image",
    (True, True): "without text and image",
}


class Guidance(Protocol[Text, Image]):
    """Logits of masked positions. ``Text`` and ``Image``: what they are given as, which the
    selection must take."""

    @property
    def branches(self) -> Mapping[str, ModelInput]:
        """The model's inputs that the predictor must be able to run, by name."""
        ...

    def text_logits(self, outputs: BranchOutputs, index: Tensor) -> Text:
        """Logits at text positions ``index`` (B, n)."""
        ...

    def image_logits(self, outputs: BranchOutputs, updated: TokenState, index: Tensor) -> Image:
        """Logits at image positions ``index`` (B, n).

        ``updated``: the state of ``outputs`` with the text unmasked at this step.
        """
        ...


class CorrectedGuidance:
    """``cond + Σ scale·(cond - branch)`` in float32, all branches on one and the same state.

    A branch replaces the whole prompt. One whose scale is 0, or that has nothing to drop, is not
    run; without an input image there is none to drop, so the joint branch is the one without the
    instruction.
    """

    def __init__(self, layout: Layout, prompt: Prompt, settings: SamplerSettings):
        image_scales = {
            (True, False): settings.text_guidance,
            (False, True): settings.image_guidance,
            (True, True): settings.joint_guidance,
        }
        text_scales = {(True, True): settings.reasoning_guidance}
        self.text_choices = slice(layout.text_choices.start, layout.text_choices.stop)
        self.branches = {CONDITIONAL: layout.model_input(prompt, prompt.initial)}
        self.image_scales = self._add(layout, prompt, image_scales)
        self.text_scales = self._add(layout, prompt, text_scales)

    def _add(
        self, layout: Layout, prompt: Prompt, scales: Mapping[Drops, float]
    ) -> dict[str, float]:
        """Scale by name of each branch that is run, which is added to :attr:`branches`."""
        by_name = {}
        for drops, scale in _merged(scales, prompt.image is not None).items():
            drop_text, drop_image = drops
            branch = layout.model_input(
                prompt, prompt.initial, drop_text=drop_text, drop_image=drop_image
            )
            if not torch.equal(branch.ids, self.branches[CONDITIONAL].ids):
                self.branches[_NAMES[drops]], by_name[_NAMES[drops]] = branch, scale
        return by_name

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


def _merged(scales: Mapping[Drops, float], has_image: bool) -> dict[Drops, float]:
    """Scales per distinct branch that is not the conditional one and not scaled by 0."""
    merged: dict[Drops, float] = {}
    for (drop_text, drop_image), scale in scales.items():
        drops = (drop_text, drop_image and has_image)
        if any(drops):
            merged[drops] = merged.get(drops, 0.0) + scale
    return {drops: scale for drops, scale in merged.items() if scale}

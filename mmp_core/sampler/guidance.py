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
_DROPS = {
    "without text": {"drop_text": True},
    "without image": {"drop_image": True},
    "without both": {"drop_text": True, "drop_image": True},
}
"""The unconditional forms of a prompt by name."""


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
        """Logits at image positions ``index`` (B, n). ``updated``: the state of ``outputs`` with
        the text unmasked at this step."""
        ...


class CorrectedGuidance:
    """``cond + Σ scale·(cond - branch)`` in float32, all branches on one and the same state. A
    branch replaces the whole prompt. One whose scale is 0, or that has nothing to drop, is not run;
    branches that are alike, as two are without an input image, are one."""

    def __init__(self, layout: Layout, prompt: Prompt, settings: SamplerSettings):
        image_scales = {
            "without text": settings.text_guidance,
            "without image": settings.image_guidance,
            "without both": settings.joint_guidance,
        }
        text_scales = {"without both": settings.reasoning_guidance}
        choices = layout.text_choices
        self.text_choices = slice(choices.start, choices.stop)
        self.never = layout.mask_id if layout.mask_id in choices else None
        self.branches = {CONDITIONAL: layout.model_input(prompt, prompt.initial)}
        self.image_scales = self._scales(layout, prompt, image_scales)
        self.text_scales = self._scales(layout, prompt, text_scales)

    def _scales(
        self, layout: Layout, prompt: Prompt, scales: Mapping[str, float]
    ) -> dict[str, float]:
        """Scale by name of each branch that is run, which is added to :attr:`branches`."""
        run: dict[str, float] = {}
        for name, scale in scales.items():
            if not scale:
                continue
            branch = layout.model_input(prompt, prompt.initial, **_DROPS[name])
            known = (n for n, other in self.branches.items() if torch.equal(branch.ids, other.ids))
            name = next(known, name)
            if name != CONDITIONAL:
                self.branches[name] = branch
                run[name] = run.get(name, 0.0) + scale
        return {name: scale for name, scale in run.items() if scale}

    def text_logits(self, outputs: BranchOutputs, index: Tensor) -> TextLogits:
        names = (CONDITIONAL, *self.text_scales)
        hidden = tuple(outputs.text_hidden(name, index) for name in names)
        scales = tuple(self.text_scales.values())
        outputs.predictor.count_logits(index, self.text_choices, len(names))
        transformer = outputs.predictor.transformer
        return TextLogits(transformer, hidden, scales, self.text_choices, self.never)

    def image_logits(
        self, outputs: BranchOutputs, updated: TokenState, index: Tensor
    ) -> ImageLogits:
        names = (CONDITIONAL, *self.image_scales)
        logits = tuple(outputs.image_logits(name, index) for name in names)
        return ImageLogits(logits, tuple(self.image_scales.values()))


def opposes(prompt: Prompt, settings: SamplerSettings) -> bool:
    """Whether a branch is run that sees the negative instruction of ``prompt``."""
    image = min(prompt.initial.grid) and (settings.joint_guidance or settings.text_guidance)
    text = prompt.initial.text.shape[1] and settings.reasoning_guidance
    return prompt.negative is not None and bool(image or text)

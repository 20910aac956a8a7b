"""MMaDA-Parallel-A: Amused-VQ, the order of Lumina-DiMOO, and the authors' sampler for it.

Reference: tyfeld/MMaDA-Parallel 5cf8978, ``inference.py``, ``train.py`` and
``generators/parallel_generator.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import CheckpointError
from ..image.amused import AmusedVQ
from ..image.pictures import (
    Offset,
    covering_placement,
    fit_image,
    nearest_size,
    sizes_near,
)
from ..image.placement import Placement, Size
from ..sampler.guidance import CONDITIONAL
from ..sampler.policies import DenoisingModel, Policies
from ..sampler.positions import MaskedPositions, masked_counts
from ..sampler.predictor import BranchOutputs
from ..sampler.schedule import Counts
from ..sampler.settings import SamplerSettings
from ..sampler.upstream import UpstreamSelection, region_draws, upstream_plan
from ..state import MASKED, Prompt, TokenState
from .base import Layout, ModelInput, Variant, column

EDIT = "Generate an image applying the following editing instruction based on the original image."
GENERATE = "Generate an image according to the text prompt."
"""System prompts that the released weights were trained with."""

_RELEASED_IDS = {
    "<|newline|>": 126084,
    "<boi>": 126349,
    "<eoi>": 126350,
    "<uncondition>": 126351,
    "<answer>": 126354,
    "</answer>": 126355,
}
_RELEASED_IMAGE_OFFSET, _RELEASED_EOS = 126356, 126081
_RELEASED_ROWS = _RELEASED_IMAGE_OFFSET + 8192


class MMaDAParallelA(Variant):
    id = "A"
    name = "MMaDA-Parallel-A"
    image_tokenizer = AmusedVQ
    image_advice = "put the vqvae folder of MMaDA-Parallel-A into {folder}"
    repository = "tyfeld/MMaDA-Parallel-A"
    licence = "MIT"
    trained_from = "dimoo"
    upstream_knows = ("text_guidance", "image_guidance")
    upstream_settings: ClassVar = {
        # The README's example.
        "text_steps": 128,
        "image_steps": 64,
        "image_guidance": 4.0,
        "joint_guidance": 0.0,
    }

    def recognises(self, config: Mapping[str, Any]) -> bool:
        if "LLaDAForMultiModalGeneration" in (config.get("architectures") or ()):
            return True
        # A wrapper of the transformer may save its own name; the rows leave room for image codes.
        of_m = "llm_vocab_size" in config or "num_new_special_tokens" in config
        rows = config.get("embedding_size") or 0
        return config.get("model_type") == "llada" and rows >= _RELEASED_ROWS and not of_m

    def layout(self, tokenizer: Any, config: Mapping[str, Any]) -> LayoutA:
        layout = LayoutA(tokenizer, config)
        layout.check_template()
        return layout

    def input_size(self, size: Size, side: int, unit: int) -> Size:
        return nearest_size(size, sizes_near(side, unit))

    def fit(self, image: Image.Image, size: Size, *, offset: Offset = "center") -> Image.Image:
        return fit_image(image, [size], offset=offset)

    def placement(self, original: Size, size: Size, *, offset: Offset = "center") -> Placement:
        return covering_placement(original, size, offset=offset)

    def upstream_policies(
        self, model: DenoisingModel, prompt: Prompt, settings: SamplerSettings
    ) -> Policies[Tensor, Tensor]:
        """The authors' sampler: unconditional prefixes are laid over the start of the conditional
        input, after the step's text update; what is still masked at the end is filled from the
        global generator."""
        quotas = truncated_quotas(masked_counts(prompt.initial.text), settings.text_steps)
        plan = upstream_plan(quotas, prompt, settings, model.device)
        layout = model.layout
        assert isinstance(layout, LayoutA)
        conditional = layout.model_input(prompt, prompt.initial)
        prefixes = layout.prefix(prompt, drop_text=True), layout.prefix(prompt, drop_image=True)
        guidance = OverlayGuidance(conditional, settings, *prefixes)
        return Policies(plan, guidance, SelectionA(model, prompt, settings))


class LayoutA(Layout):
    """``<system>…</system><user>instruction [boi rows eoi] </user>``, then the answer ``<answer>
    boi rows eoi text </answer>``. ``rows``: each row of image codes followed by one newline id. The
    input image stands just before the closing ``</user>``."""

    def __init__(self, tokenizer: Any, config: Mapping[str, Any]):
        super().__init__(tokenizer, config, _RELEASED_IMAGE_OFFSET)
        self.newline, self.boi, self.eoi, self.answer, self.answer_end = (
            self.token_id(name, _RELEASED_IDS)
            for name in ("<|newline|>", "<boi>", "<eoi>", "<answer>", "</answer>")
        )
        self.end_of_text = config.get("eos_token_id", _RELEASED_EOS)
        self.pads_text = "default_text_length" in config
        self._unconditional = {s: self._templated(s, "<uncondition>") for s in (EDIT, GENERATE)}

    def encode(self, instruction: str, image: Tensor | None, initial: TokenState) -> Prompt:
        system = GENERATE if image is None else EDIT
        conditional = self._templated(system, instruction).expand(initial.batch, -1)
        unconditional = self._unconditional[system].expand(initial.batch, -1)
        return Prompt(conditional, unconditional, image, initial)

    def check_template(self) -> None:
        """Raise ``CheckpointError`` for a tokenizer that adds ids of its own at the end: the input
        image goes before the last id, which must be the instruction's closing tag."""
        last = self._templated(EDIT, "")[0, -1]
        closing = self.tokenizer("</user>", add_special_tokens=False)["input_ids"]
        if not closing or last != closing[-1]:
            raise CheckpointError(
                f"The tokenizer ends an instruction with {self.tokenizer.decode([int(last)])!r} "
                "instead of </user>: it is not the one of MMaDA-Parallel-A; put the tokenizer "
                "files of the checkpoint's repository beside config.json."
            )

    def _templated(self, system: str, user: str) -> Tensor:
        """(1, L) int64 ids of the instruction in its template."""
        text = f"<system>{system}</system><user>{user}</user>"
        return torch.tensor([self.tokenizer(text)["input_ids"]], dtype=torch.int64)

    def model_input(self, prompt: Prompt, state: TokenState, **drops: bool) -> ModelInput:
        prefix = self.prefix(prompt, **drops)
        height, width = state.grid
        image, text = self._image_segment(state.image), self.text_ids(state.text)
        answer, answer_end = column(prefix, self.answer), column(prefix, self.answer_end)
        ids = torch.cat((prefix, answer, image, text, answer_end), dim=1)
        first_code = prefix.shape[1] + 2
        rows = torch.arange(height, device=ids.device)[:, None] * (width + 1)
        image_positions = (first_code + rows + torch.arange(width, device=ids.device)).flatten()
        first_word = first_code + height * (width + 1) + 1
        text_positions = first_word + torch.arange(text.shape[1], device=ids.device)
        return ModelInput(ids, image_positions, text_positions)

    def prefix(
        self, prompt: Prompt, *, drop_text: bool = False, drop_image: bool = False
    ) -> Tensor:
        """(B, P) ids before the answer."""
        words = prompt.without_text if drop_text else prompt.instruction
        if prompt.image is None or drop_image:
            return words
        return torch.cat((words[:, :-1], self._image_segment(prompt.image), words[:, -1:]), dim=1)

    def _image_segment(self, codes: Tensor) -> Tensor:
        """boi, each row of (B, H, W) codes followed by a newline, eoi."""
        ids = self.image_ids(codes)
        newline = ids.new_full((*ids.shape[:2], 1), self.newline)
        rows = torch.cat((ids, newline), dim=2).flatten(1)
        return torch.cat((column(rows, self.boi), rows, column(rows, self.eoi)), dim=1)


def truncated_quotas(masked: Counts, steps: int) -> list[Counts]:
    """Text tokens per step: the difference of truncated targets."""
    targets = [[int(n * (1 - step / steps)) for n in masked] for step in range(steps + 1)]
    return [
        tuple(max(0, before - after) for before, after in zip(*pair, strict=True))
        for pair in pairwise(targets)
    ]


class OverlayGuidance:
    """Unconditional branches are prefixes of ids laid over the start of the conditional input."""

    def __init__(
        self,
        conditional: ModelInput,
        settings: SamplerSettings,
        text_prefix: Tensor | None,
        image_prefix: Tensor | None,
    ):
        """Prefixes: (B, P); ``None`` lays nothing, as the reference does where none is given."""
        scales = {"text overlay": settings.text_guidance, "image overlay": settings.image_guidance}
        prefixes = {"text overlay": text_prefix, "image overlay": image_prefix}
        self.scales = {name: scale for name, scale in scales.items() if scale}
        self.active = any(scales[name] > 0 and prefixes[name] is not None for name in scales)
        self.branches = {CONDITIONAL: conditional}
        for name, prefix in prefixes.items():
            self.branches[name] = conditional
            if prefix is not None:
                ids = torch.cat((prefix, conditional.ids[:, prefix.shape[1] :]), dim=1)
                self.branches[name] = replace(conditional, ids=ids)

    def text_logits(self, outputs: BranchOutputs, index: Tensor) -> Tensor:
        return outputs.text_logits(CONDITIONAL, index, slice(None))

    def image_logits(self, outputs: BranchOutputs, updated: TokenState, index: Tensor) -> Tensor:
        conditional = guided = outputs.image_logits(CONDITIONAL, index)
        later = BranchOutputs(outputs.predictor, updated)
        for name, scale in self.scales.items():
            other = later.image_logits(name, index) if self.active else 0.0
            guided = guided + scale * (conditional - other)
        return guided


class SelectionA(UpstreamSelection):
    """Samples without masked text draw nothing for it."""

    def text_draws(
        self, positions: MaskedPositions, dtype: torch.dtype, choices: tuple[int, ...] = ()
    ) -> Tensor:
        index, shape = positions.index, (positions.tokens.shape[1], *choices)
        draws = torch.zeros((*index.shape, *choices), dtype=dtype, device=index.device)
        for i, count in enumerate(positions.counts):
            if count:
                sample = slice(i, i + 1)
                generators = self.generators[sample]
                draws[sample] = region_draws(
                    index[sample], shape, dtype, Tensor.uniform_, generators
                )
        return draws

    def noisy(self, scores: Tensor, uniform: Tensor) -> Tensor:
        inner = uniform.add_(1e-10).log_().neg_().add_(1e-10)
        return inner.log_().neg_().mul_(self.settings.text_temperature).add_(scores)

    def image_race(self, positions: MaskedPositions) -> Tensor | None:
        return self.race_of_multinomial(positions) if self.settings.image_temperature else None

    def masking(self, selected: Tensor, keep: Tensor, noise: float) -> Tensor:
        draws = [
            torch.randn(selected.shape[1:], dtype=self.dtype, device=selected.device, generator=g)
            for g in self.generators
        ]
        ranking = torch.log(selected + 1e-10) + noise * torch.stack(draws)
        return ranking.sort(dim=1).indices.argsort(dim=1) < keep

    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        masked = state.image == MASKED
        random_codes = torch.randint(0, self.layout.codebook_size, (int(masked.sum()),))
        image = state.image.masked_scatter(masked, random_codes.to(masked.device))
        return replace(state, image=image)

"""The released samplers as policies: the same tokens and the same random draws, quirks included.

Reference: tyfeld/MMaDA-Parallel 5cf8978, ``generators/parallel_generator.py`` (variant A) and
``interleave_generate`` in ``models/modeling_mmada.py`` (variant M). What they do that the corrected
policies do not:

- both: random numbers are drawn for whole regions in the dtype of the logits; text may be any id,
  image codes and the mask included; the image's mask ratio follows the loop step and the whole
  grid; image steps that round to the same loop step are one; one image code is never revealed.
- A: unconditional prefixes are laid over the start of the conditional sequence, after the step's
  text update; what is still masked at the end is filled from the global generator.
- M: text guidance has the opposite sign; text draws come from the global generator; the codes
  sampled last are the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import InputError
from ..model.kernels.plain import log_odds
from ..state import MASKED, Prompt, TokenState
from ..variants.base import Layout, ModelInput
from ..variants.mmada_parallel_a import VariantA
from .guidance import CONDITIONAL
from .plan import Plan, Targets
from .policies import DenoisingModel, Policies
from .positions import Generators, MaskedPositions, masked_counts, seeded_generators
from .predictor import BranchOutputs
from .schedule import Counts, PlannedStep
from .selection import TokenUpdate
from .settings import SamplerSettings

Fill = Callable[..., Tensor]
"""An in-place random method of tensors, such as ``Tensor.uniform_``."""


def upstream_policies(model: DenoisingModel, prompt: Prompt, settings: SamplerSettings) -> Policies:
    """Raises ``InputError`` for a guidance that the variant's reference does not know."""
    layout, device = model.layout, model.device
    text_masked = masked_counts(prompt.initial.text)
    build = (
        settings,
        seeded_generators(settings.seeds(prompt.batch), device),
        model.transformer.config.embedding_size,
        model.transformer.layers["wte"].weight.dtype,
    )
    if isinstance(layout, VariantA):
        _check_unused(settings, "A", ("joint_guidance", "reasoning_guidance"))
        quotas = quotas_a(text_masked, settings.text_steps)
        guidance = OverlayGuidance(
            layout.model_input(prompt, prompt.initial),
            settings,
            layout.prefix(prompt, drop_text=True, drop_image=False),
            layout.prefix(prompt, drop_text=False, drop_image=True),
        )
        selection = SelectionA(layout, *build)
    else:
        _check_unused(settings, "M", ("text_guidance", "image_guidance"))
        quotas = quotas_m(text_masked, settings.text_steps)
        guidance = JointGuidance(layout, prompt, settings)
        selection = SelectionM(layout, *build)
    steps = upstream_steps(quotas, prompt.initial.image[0].numel(), settings)
    return Policies(Plan.of(steps, prompt.batch, device), guidance, selection)


def _check_unused(settings: SamplerSettings, variant: str, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(settings, name):
            raise InputError(
                f"{name} must be 0 with the upstream preset on variant {variant}, whose reference "
                f"does not know it; SamplerSettings.upstream(variant={variant!r}) has its values."
            )


def upstream_steps(
    quotas: list[Counts], cells: int, settings: SamplerSettings
) -> list[PlannedStep]:
    """One step per text step; ``quotas`` per step, ``cells`` the number of image codes."""
    total = settings.text_steps
    window = torch.linspace(total // 4, total - 1, settings.image_steps)
    image_at = set(window.round().int().tolist())
    steps = []
    for index, quota in enumerate(quotas):
        step = PlannedStep(text_quota=quota)
        if index in image_at:
            progress = (index + 1) / total
            masked = int((cells * torch.cos(torch.tensor(progress) * math.pi / 2)).floor())
            step = replace(
                step,
                image_masked_after=(masked,) * len(quota),
                image_noise=settings.image_temperature * (1.0 - progress),
            )
        steps.append(step)
    return steps


def quotas_a(masked: Counts, steps: int) -> list[Counts]:
    """Text tokens per step: the difference of truncated targets."""
    targets = [[int(n * (1 - step / steps)) for n in masked] for step in range(steps + 1)]
    return [
        tuple(max(0, before - after) for before, after in zip(*pair, strict=True))
        for pair in pairwise(targets)
    ]


def quotas_m(masked: Counts, steps: int) -> list[Counts]:
    """Text tokens per step: the quotient, and one more in the first steps for the remainder."""
    return [tuple(n // steps + (step < n % steps) for n in masked) for step in range(steps)]


class OverlayGuidance:
    """Variant A. ``text_prefix`` and ``image_prefix``: ids (B, P) laid over the conditional
    sequence; ``None`` lays nothing, as the reference does where none is given."""

    text_choices = slice(None)

    def __init__(
        self,
        conditional: ModelInput,
        settings: SamplerSettings,
        text_prefix: Tensor | None,
        image_prefix: Tensor | None,
    ):
        scales = {"text overlay": settings.text_guidance, "image overlay": settings.image_guidance}
        prefixes = {"text overlay": text_prefix, "image overlay": image_prefix}
        self.scales = {name: scale for name, scale in scales.items() if scale}
        self.active = any(scales[name] > 0 and prefixes[name] is not None for name in scales)
        self.branches = {CONDITIONAL: conditional}
        for name, prefix in prefixes.items():
            self.branches[name] = _overlaid(conditional, prefix)

    def text_logits(self, outputs: BranchOutputs, index: Tensor) -> Tensor:
        return outputs.text_logits(CONDITIONAL, index, self.text_choices)

    def image_logits(self, outputs: BranchOutputs, updated: TokenState, index: Tensor) -> Tensor:
        conditional = guided = outputs.image_logits(CONDITIONAL, index)
        later = outputs.predictor.outputs(updated)
        for name, scale in self.scales.items():
            other = later.image_logits(name, index) if self.active else 0.0
            guided = guided + scale * (conditional - other)
        return guided


def _overlaid(sequence: ModelInput, prefix: Tensor | None) -> ModelInput:
    if prefix is None:
        return sequence
    return replace(sequence, ids=torch.cat((prefix, sequence.ids[:, prefix.shape[1] :]), dim=1))


class JointGuidance:
    """Variant M: one branch without instruction and input image, for both modalities."""

    text_choices = slice(None)

    def __init__(self, layout: Layout, prompt: Prompt, settings: SamplerSettings):
        self.text_scale, self.image_scale = settings.reasoning_guidance, settings.joint_guidance
        self.branches = {
            CONDITIONAL: layout.model_input(prompt, prompt.initial),
            "joint": layout.model_input(prompt, prompt.initial, drop_text=True, drop_image=True),
        }

    def text_logits(self, outputs: BranchOutputs, index: Tensor) -> Tensor:
        conditional = outputs.text_logits(CONDITIONAL, index, self.text_choices)
        if not self.text_scale:
            return conditional
        joint = outputs.text_logits("joint", index, self.text_choices)
        return conditional + self.text_scale * (joint - conditional)

    def image_logits(self, outputs: BranchOutputs, updated: TokenState, index: Tensor) -> Tensor:
        conditional = outputs.image_logits(CONDITIONAL, index)
        if not self.image_scale:
            return conditional
        joint = outputs.image_logits("joint", index)
        return (1 + self.image_scale) * conditional - self.image_scale * joint


class UpstreamSelection:
    """What both variants share: noise over whole regions, ranking, and what is written back.

    ``vocabulary``: number of ids. ``dtype``: the model's, which most draws are made in.
    """

    def __init__(
        self,
        layout: Layout,
        settings: SamplerSettings,
        generators: Generators,
        vocabulary: int,
        dtype: torch.dtype,
    ):
        self.layout, self.settings, self.generators = layout, settings, generators
        self.vocabulary, self.dtype = vocabulary, dtype

    def text(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], Tensor]
    ) -> TokenUpdate:
        positions = targets.positions
        noise = self.text_noise(positions) if self.settings.text_temperature else None
        random = self.text_ranks(positions) if self.settings.remasking == "random" else None
        if not positions.index.shape[1]:
            return before
        scores = logits(positions.index)
        best = (scores if noise is None else self.noisy(scores, noise)).argmax(dim=-1)
        odds = log_odds(scores.float(), best)
        ranking, confidence = (odds, odds.sigmoid()) if random is None else (random, random)
        tokens = torch.where(best == self.layout.mask_id, MASKED, best)
        return before.at(positions, tokens, confidence, positions.highest(ranking, targets.count))

    def image(
        self, targets: Targets, before: TokenUpdate, logits: Callable[[Tensor], Tensor]
    ) -> TokenUpdate:
        positions, tokens = targets.positions, targets.positions.tokens
        undecided = tokens == MASKED
        known = torch.finfo(self.dtype).max
        selected = torch.full_like(tokens, known, dtype=self.dtype)
        race, sampled = self.image_race(positions), tokens
        if positions.index.shape[1]:
            probabilities = logits(positions.index).softmax(dim=-1)
            best = (probabilities if race is None else probabilities / race).argmax(dim=-1)
            sampled = positions.fill(best, tokens)
            selected = positions.fill(probabilities.gather(-1, best[..., None])[..., 0], selected)
        keep = undecided.sum(dim=1).sub(1).minimum(targets.count)
        keep = keep.clamp(1).clamp(max=tokens.shape[1] - 1)
        masking = self.masking(selected, keep[:, None], targets.noise)
        return TokenUpdate(
            guess=sampled,
            confidence=torch.where(undecided, selected.float(), 1.0),
            revealed=undecided & ~masking,
            after=torch.where(masking, MASKED, sampled),
        )

    def race_of_multinomial(self, positions: MaskedPositions) -> Tensor:
        """What ``torch.multinomial`` over (N, codes) divides by, at ``positions``."""
        shape = (positions.tokens.shape[1], self.layout.codebook_size)
        return region_draws(
            positions.index, shape, self.dtype, Tensor.exponential_, self.generators
        )


class SelectionA(UpstreamSelection):
    """Variant A. Samples whose text is decided draw nothing for it."""

    def text_noise(self, positions: MaskedPositions) -> Tensor:
        shape = (positions.tokens.shape[1], self.vocabulary)
        return self._text_draws(positions, shape, self.dtype)

    def text_ranks(self, positions: MaskedPositions) -> Tensor:
        return self._text_draws(positions, (positions.tokens.shape[1],), torch.float32)

    def _text_draws(
        self, positions: MaskedPositions, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        draws = torch.zeros(
            (*positions.index.shape, *shape[1:]), dtype=dtype, device=positions.index.device
        )
        for i, count in enumerate(positions.counts):
            if count:
                own = slice(i, i + 1)
                draws[own] = region_draws(
                    positions.index[own], shape, dtype, Tensor.uniform_, self.generators[own]
                )
        return draws

    def noisy(self, scores: Tensor, uniform: Tensor) -> Tensor:
        gumbel = -torch.log(-torch.log(uniform + 1e-10) + 1e-10)
        return scores + self.settings.text_temperature * gumbel

    def image_race(self, positions: MaskedPositions) -> Tensor | None:
        return self.race_of_multinomial(positions) if self.settings.image_temperature else None

    def masking(self, selected: Tensor, keep: Tensor, noise: float) -> Tensor:
        parts = [
            torch.randn(selected.shape[1:], dtype=self.dtype, device=selected.device, generator=g)
            for g in self.generators
        ]
        ranking = torch.log(selected + 1e-10) + noise * torch.stack(parts)
        return ranking.sort(dim=1).indices.argsort(dim=1) < keep

    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        masked = state.image == MASKED
        random = torch.randint(0, self.layout.codebook_size, (int(masked.sum()),))
        return TokenState(state.text, state.image.masked_scatter(masked, random.to(masked.device)))


class SelectionM(UpstreamSelection):
    """Variant M. Its text region starts with the fixed bos, and draws from the global generator."""

    def text_noise(self, positions: MaskedPositions) -> Tensor:
        return self._text_draws(
            positions, (positions.tokens.shape[1] + 1, self.vocabulary), torch.float64
        )

    def text_ranks(self, positions: MaskedPositions) -> Tensor:
        return self._text_draws(positions, (positions.tokens.shape[1] + 1,), torch.float32)

    def _text_draws(
        self, positions: MaskedPositions, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        unseeded = [None] * len(positions.counts)
        return region_draws(positions.index + 1, shape, dtype, Tensor.uniform_, unseeded)

    def noisy(self, scores: Tensor, uniform: Tensor) -> Tensor:
        return scores.double().exp() / (-uniform.log()) ** self.settings.text_temperature

    def image_race(self, positions: MaskedPositions) -> Tensor:
        return self.race_of_multinomial(positions)

    def masking(self, selected: Tensor, keep: Tensor, noise: float) -> Tensor:
        region = torch.arange(selected.shape[1], device=selected.device).expand_as(selected)
        uniform = region_draws(
            region, selected.shape[1:], self.dtype, Tensor.uniform_, self.generators
        )
        ranking = _log(selected) + noise * -_log(-_log(uniform))
        return ranking < ranking.sort(dim=1).values.gather(1, keep)

    def finish(self, state: TokenState, guess: TokenState) -> TokenState:
        return TokenState(state.text, guess.image)


def region_draws(
    index: Tensor, shape: tuple[int, ...], dtype: torch.dtype, fill: Fill, generators: Generators
) -> Tensor:
    """(B, n, …): random numbers drawn for a whole region ``shape`` per sample, those at ``index``.

    The reference draws for decided positions, too, so the random stream depends on them.
    """
    parts = []
    for row, generator in zip(index, generators, strict=True):
        region = torch.empty(shape, dtype=dtype, device=index.device)
        parts.append(fill(region, generator=generator)[row])
    return torch.stack(parts)


def _log(x: Tensor) -> Tensor:
    return x.clamp(min=1e-20).log()

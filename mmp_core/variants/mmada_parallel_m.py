"""MMaDA-Parallel-M: MAGVIT-v2, the order of MMaDA, and the authors' sampler for it.

Reference: tyfeld/MMaDA-Parallel 5cf8978, ``inference.py`` and ``interleave_generate`` in
``models/modeling_mmada.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import CheckpointError
from ..image.magvit import MagvitV2
from ..image.pictures import Offset, squash_image
from ..image.placement import Size
from ..sampler.guidance import CONDITIONAL
from ..sampler.policies import DenoisingModel, Policies
from ..sampler.positions import MaskedPositions, masked_counts
from ..sampler.predictor import BranchOutputs
from ..sampler.schedule import Counts
from ..sampler.settings import SamplerSettings
from ..sampler.upstream import UpstreamSelection, region_draws, upstream_plan
from ..state import Prompt, TokenState
from .base import Layout, ModelInput, Variant, column

_RELEASED_IDS = {
    "<|soi|>": 126084,
    "<|eoi|>": 126085,
    "<|t2i|>": 126088,
    "<|interleave|>": 126095,
    "<|startoftext|>": 126080,
}
_HEADER, _HEADER_TOKENS = "<|end_header_id|>", 3
_RELEASED_ROWS, _RELEASED_OFFSET = 134_656, 126_349
_NO_IMAGE = 0
"""Id that stands at every image position of an absent input image."""


class MMaDAParallelM(Variant):
    id = "M"
    name = "MMaDA-Parallel-M"
    image_tokenizer = MagvitV2
    image_folders = ("magvitv2", "vqvae")
    image_config_needed = False
    image_advice = "put the files of showlab/magvitv2 into {folder}/magvitv2"
    repository = "tyfeld/MMaDA-Parallel-M"
    image_repository = "showlab/magvitv2"
    licence = "MIT"
    trained_from = "mmada[-_ ]?8b[-_ ]?mixcot"
    upstream_knows = ("joint_guidance", "reasoning_guidance")
    upstream_settings: ClassVar = {
        # Those of inference.py.
        "text_steps": 128,
        "image_steps": 30,
        "joint_guidance": 4.0,
        "reasoning_guidance": 2.5,
    }
    upstream_noise_bytes = 8

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return (
            "MMadaModelLM" in (config.get("architectures") or ())
            or config.get("model_type") == "mmada"
            or "llm_vocab_size" in config
            or "num_new_special_tokens" in config
        )

    def layout(self, tokenizer: Any, config: Mapping[str, Any]) -> LayoutM:
        return LayoutM(tokenizer, config)

    def input_size(self, size: Size, side: int, unit: int) -> Size:
        return side, side

    def fit(self, image: Image.Image, size: Size, *, offset: Offset = "center") -> Image.Image:
        return squash_image(image, size)

    def upstream_policies(
        self, model: DenoisingModel, prompt: Prompt, settings: SamplerSettings
    ) -> Policies[Tensor, Tensor]:
        """The authors' sampler: text guidance has the opposite sign; text draws come from the
        global generator; the codes sampled last are the result."""
        quotas = even_quotas(masked_counts(prompt.initial.text), settings.text_steps)
        plan = upstream_plan(quotas, prompt, settings, model.device)
        guidance = JointGuidance(model.layout, prompt, settings)
        return Policies(plan, guidance, SelectionM(model, prompt, settings))


def _image_offset(tokenizer: Any, config: Mapping[str, Any]) -> int:
    """Id of image code 0: after the tokenizer's own and the three header tokens, which the authors'
    code adds where the tokenizer lacks them (prompting_utils.py), as far as the embedding has rows
    for them.

    Raises ``CheckpointError`` for a checkpoint of the released size with another offset.
    """
    rows, offset = config.get("embedding_size") or 0, len(tokenizer)
    header = tokenizer.convert_tokens_to_ids(_HEADER)
    if header in (None, tokenizer.unk_token_id):
        fits = offset + _HEADER_TOKENS + config.get("codebook_size", 8192) <= rows
        offset += _HEADER_TOKENS * fits
    offset = config.get("text_vocab_size", offset)
    if rows == _RELEASED_ROWS and offset != _RELEASED_OFFSET:
        raise CheckpointError(
            f"The tokenizer puts image codes at {offset}, MMaDA-Parallel-M has them at "
            f"{_RELEASED_OFFSET}: put the tokenizer files of the checkpoint's repository beside "
            "config.json."
        )
    return offset


class LayoutM(Layout):
    """``interleave soi codes eoi bos instruction eos | soi codes eoi bos text``.

    Rows have no separators, so ids alone do not tell a grid's shape. Without an input image the
    tag is ``t2i`` and its place holds id 0, as many times as the output has codes. The ``bos``
    before the text is fixed and not part of the state.
    """

    def __init__(self, tokenizer: Any, config: Mapping[str, Any]):
        super().__init__(tokenizer, config, _image_offset(tokenizer, config))
        self.soi, self.eoi, self.generate_tag, self.edit_tag = (
            self.token_id(name, _RELEASED_IDS)
            for name in ("<|soi|>", "<|eoi|>", "<|t2i|>", "<|interleave|>")
        )
        self.bos = tokenizer.bos_token_id
        if self.bos is None:
            self.bos = self.token_id("<|startoftext|>", _RELEASED_IDS)
        self.eos = tokenizer.eos_token_id
        if self.eos is None:
            self.eos = config["eos_token_id"]
        self.end_of_text, self.pads_text = self.eos, True

    def encode(self, instruction: str, image: Tensor | None, initial: TokenState) -> Prompt:
        words = self.tokenizer(instruction)["input_ids"]
        if words[:1] != [self.bos]:
            words = [self.bos, *words]
        conditional = torch.tensor([*words, self.eos]).expand(initial.batch, -1)
        unconditional = torch.full_like(conditional, self.eos)
        unconditional[:, 0] = self.bos
        return Prompt(conditional, unconditional, image, initial)

    def model_input(self, prompt: Prompt, state: TokenState, **drops: bool) -> ModelInput:
        prefix = self.prefix(prompt, state, **drops)
        image, text = self.image_ids(state.image.flatten(1)), self.text_ids(state.text)
        soi, eoi, bos = (column(text, token) for token in (self.soi, self.eoi, self.bos))
        ids = torch.cat((prefix, soi, image, eoi, bos, text), dim=1)
        first_code = prefix.shape[1] + 1
        image_positions = first_code + torch.arange(image.shape[1], device=ids.device)
        first_word = first_code + image.shape[1] + 2
        text_positions = first_word + torch.arange(text.shape[1], device=ids.device)
        return ModelInput(ids, image_positions, text_positions)

    def prefix(
        self,
        prompt: Prompt,
        state: TokenState,
        *,
        drop_text: bool = False,
        drop_image: bool = False,
    ) -> Tensor:
        """(B, P) ids before the answer."""
        words = prompt.without_text if drop_text else prompt.instruction
        if prompt.image is None:
            tag, image = self.generate_tag, torch.full_like(state.image.flatten(1), _NO_IMAGE)
        else:
            tag, image = self.edit_tag, self.image_ids(prompt.image.flatten(1))
            image = torch.full_like(image, _NO_IMAGE) if drop_image else image
        tag, soi, eoi = (column(words, token) for token in (tag, self.soi, self.eoi))
        return torch.cat((tag, soi, image, eoi, words), dim=1)


def even_quotas(masked: Counts, steps: int) -> list[Counts]:
    """Text tokens per step: the quotient, and one more in the first steps for the remainder."""
    return [tuple(n // steps + (step < n % steps) for n in masked) for step in range(steps)]


class JointGuidance:
    """One branch without instruction and input image, for both modalities."""

    def __init__(self, layout: Layout, prompt: Prompt, settings: SamplerSettings):
        self.text_scale, self.image_scale = settings.reasoning_guidance, settings.joint_guidance
        self.branches = {
            CONDITIONAL: layout.model_input(prompt, prompt.initial),
            "joint": layout.model_input(prompt, prompt.initial, drop_text=True, drop_image=True),
        }

    def text_logits(self, outputs: BranchOutputs, index: Tensor) -> Tensor:
        conditional = outputs.text_logits(CONDITIONAL, index, slice(None))
        if not self.text_scale:
            return conditional
        joint = outputs.text_logits("joint", index, slice(None))
        return conditional + self.text_scale * (joint - conditional)

    def image_logits(self, outputs: BranchOutputs, updated: TokenState, index: Tensor) -> Tensor:
        conditional = outputs.image_logits(CONDITIONAL, index)
        if not self.image_scale:
            return conditional
        joint = outputs.image_logits("joint", index)
        return (1 + self.image_scale) * conditional - self.image_scale * joint


class SelectionM(UpstreamSelection):
    """The text region starts with the fixed bos, and draws from the global generator."""

    def __init__(self, model: DenoisingModel, prompt: Prompt, settings: SamplerSettings):
        super().__init__(model, prompt, settings)
        self.noise_dtype = torch.float64

    def text_draws(
        self, positions: MaskedPositions, dtype: torch.dtype, choices: tuple[int, ...] = ()
    ) -> Tensor:
        shape = (positions.tokens.shape[1] + 1, *choices)
        unseeded = [None] * len(positions.counts)
        return region_draws(positions.index + 1, shape, dtype, Tensor.uniform_, unseeded)

    def noisy(self, scores: Tensor, uniform: Tensor) -> Tensor:
        wide = scores.to(uniform.device).double().exp()
        return wide / (-uniform.log()) ** self.settings.text_temperature

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
        return replace(state, image=guess.image)


def _log(x: Tensor) -> Tensor:
    return x.clamp(min=1e-20).log()

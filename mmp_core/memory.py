"""How many bytes a run needs on its device, from its shapes, before it is run.

What is counted are tensors alive at the worst moment. Temporaries inside a kernel, a library's
workspaces and an allocator's fragments are not; hosts keep a reserve for these. Tests compare the
numbers with counted peaks: they are at most 1.1 times too small and at most twice too large.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .errors import InputError
from .image.tokenizer import ImageTokenizer
from .model import int8
from .model.config import ModelConfig
from .model.formats import FORMATS
from .model.kernels import available
from .model.lora import adaptable_layers
from .model.quantised import WeightOnlyLinear, replace_linears
from .model.transformer import KeyValueCache, MaskedDiffusionTransformer
from .sampler.policies import DenoisingModel
from .sampler.settings import SamplerSettings
from .state import Prompt

_STEP_BYTES_PER_TOKEN = 8 + 8 + 1 + 4
"""A recorded step: the state after it, its guess, what it unmasked, confidences."""
_SMALL = 10**9
_REFUSALS = "out of memory|can't allocate memory|not enough memory|status_alloc_failed"


class OutOfMemory(InputError, torch.OutOfMemoryError):
    """The device has too little memory. Hosts treat it as PyTorch's own error and free theirs."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a device's or the CPU's refusal to allocate."""
    if isinstance(error, RuntimeError) and re.search(_REFUSALS, str(error), re.IGNORECASE):
        return True
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))


def free_bytes(device: torch.device) -> float:
    """What a GPU can still allocate, PyTorch's own reserve included, or what a CPU can without
    swapping; infinite where not known."""
    if device.type == "cpu":
        return _available_memory()
    if device.type != "cuda":
        return math.inf
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def _available_memory() -> float:
    """By the operating system, where it says so in Linux' way."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = dict(line.split(":") for line in lines)
        return int(values["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, LookupError):
        return math.inf


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that denoising needs beside the weights. ``fixed``: for any batch. Per sample:
    ``working``, at the worst moment of a step, and ``retained`` from step to step. ``picture``: to
    decode one, between two steps or at the end; 0 where none is decoded."""

    fixed: int
    working: int
    retained: int
    picture: int = 0

    def total(self, samples: int) -> int:
        """Bytes for ``samples`` at once."""
        return self.fixed + samples * self.retained + max(samples * self.working, self.picture)

    def samples_in(self, free: float, most: int) -> int:
        """How many of ``most`` samples at once fit in ``free`` bytes; at least 1."""
        if self.total(most) <= free:
            return most
        fit = (free - self.fixed) // (self.working + self.retained)
        if self.picture and self.retained:
            fit = min(fit, (free - self.fixed - self.picture) // self.retained)
        return max(1, int(fit))


def module_bytes(module: nn.Module) -> int:
    """Weights and buffers of ``module`` as they are stored."""
    tensors = module.state_dict(keep_vars=True).values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def stored_bytes(
    config: ModelConfig, dtype: torch.dtype = torch.bfloat16, quantised: str | None = None
) -> int:
    """A transformer's weights: in ``dtype``, the blocks' linear layers ``quantised`` ("fp8" or
    "int8") as ``mmada-parallel convert`` does."""
    model = MaskedDiffusionTransformer(config, dtype=dtype, device="meta")
    if quantised:
        formats = dict.fromkeys(adaptable_layers(model), FORMATS[quantised])
        replace_linears(model, formats, WeightOnlyLinear)
    return module_bytes(model)


def forward_bytes(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """The most that one forward of ``tokens`` (batch · length) holds, without gradients. That is
    where keys are rotated (input, its norm, q, k, v, rotated q; the rotation's own, in float32), or
    where the MLP multiplies (two residuals, norm; two of its width)."""
    width, kv = config.d_model, config.n_kv_heads * config.head_dim
    upcast = config.rope_full_precision and itemsize < 4
    rotation = kv * (4 + 2 if upcast else 3 * itemsize // 2)
    attention = itemsize * (4 * width + 2 * kv) + rotation
    mlp = itemsize * (3 * width + 2 * config.mlp_hidden_size)
    return tokens * max(attention, mlp)


def dequantised_bytes(transformer: MaskedDiffusionTransformer, itemsize: int) -> int:
    """The largest layer that is stored in a byte per weight, while it is dequantised, or multiplied
    as int8. ``itemsize``: bytes of a dequantised weight, which is there twice: cast, and times its
    scale."""
    sizes = (
        int8.PART_BYTES if layer.as_int8 else 2 * layer.in_features * layer.out_features * itemsize
        for layer in transformer.modules()
        if isinstance(layer, WeightOnlyLinear)
    )
    return max(sizes, default=0)


def selection_bytes(positions: int, choices: int, branches: int, noise: int, itemsize: int) -> int:
    """Logits of ``branches`` at ``positions``, guided, noised and chosen from in float32.
    ``noise``: bytes of a random number, 0 without."""
    per_logit = itemsize * branches + 8 + 3 * noise
    if branches > 1 and itemsize < 4:
        per_logit += 4
    return positions * choices * per_logit


def denoising_estimate(
    model: DenoisingModel,
    prompt: Prompt,
    settings: SamplerSettings,
    *,
    record: int | None = None,
    picture: int = 0,
) -> MemoryEstimate:
    """Estimate ``denoise`` with the same arguments. ``picture``: see ``MemoryEstimate``.

    At its worst moment a step holds a forward, with what adapters add, and the other branches'
    results, or the logits it selects from. From step to step stay the branches' caches and the
    recorded steps. Branches count as long as the conditional one; locked tokens as if masked.
    """
    config, sample, dtype = model.transformer.config, prompt[:1], model.transformer.dtype
    itemsize = dtype.itemsize
    length = model.layout.model_input(sample, sample.initial).ids.shape[1]
    if prompt.negative is not None:
        length += max(0, prompt.negative.shape[1] - prompt.instruction.shape[1])
    words, codes = sample.initial.text.shape[1], sample.initial.image[0].numel()
    hidden = length * config.d_model * itemsize
    text_branches, image_branches = _unconditional_branches(settings, words, codes)
    branches = 1 + len(text_branches | image_branches)
    choices, noise = len(model.layout.text_choices), 4
    if settings.preset == "upstream":  # any id
        choices = config.embedding_size
        noise = model.variant.upstream_noise_bytes
    text_noise = noise if settings.text_temperature else 0
    at_once = _words_at_once(words, settings)
    text = selection_bytes(at_once, choices, 1 + len(text_branches), text_noise, itemsize)
    if settings.preset == "upstream":
        text += at_once * choices * model.variant.upstream_text_bytes
        text += length * choices * text_noise * model.variant.upstream_draws_rows
    elif chosen_by_kernels(model, itemsize):
        text = at_once * choices * 2 * text_noise
    image_noise = 4 if settings.image_temperature else 0
    image = selection_bytes(
        codes, model.layout.codebook_size, 1 + len(image_branches), image_noise, itemsize
    )
    adapters = length * config.mlp_hidden_size * itemsize
    forward = forward_bytes(config, length, itemsize) + adapters
    working = max(forward, text, image) + branches * hidden
    retained = (_recorded(settings, record) + 2) * (words + codes) * _STEP_BYTES_PER_TOKEN
    if settings.reuses:
        retained += branches * (KeyValueCache.bytes_of(config, 1, length, dtype) + hidden)
    table = 2 * length * config.head_dim * 4
    fixed = table + dequantised_bytes(model.transformer, itemsize)
    return MemoryEstimate(fixed, working, retained, picture)


def decoding_bytes(tokenizer: ImageTokenizer, grid: tuple[int, int]) -> int:
    """What decoding one picture of ``grid`` image tokens holds."""
    return grid[0] * grid[1] * tokenizer.downsample**2 * tokenizer.bytes_per_pixel


def _words_at_once(words: int, settings: SamplerSettings) -> int:
    """Text tokens that a step chooses among: of all blocks that share a step."""
    block = settings.block_length or max(1, words)
    blocks = math.ceil(words / block)
    return min(words, block * math.ceil(blocks / settings.text_steps))


def chosen_by_kernels(model: DenoisingModel, itemsize: int) -> bool:
    """Whether words are chosen without their logits being held."""
    fits = available(model.device) and itemsize < 4
    return fits and model.layout.mask_id not in model.layout.text_choices


def _recorded(settings: SamplerSettings, record: int | None) -> int:
    steps = max(settings.text_steps, settings.image_steps)
    if settings.order != "parallel":
        steps = settings.text_steps + settings.image_steps
    return steps if record is None else min(record, steps)


def _unconditional_branches(
    settings: SamplerSettings, words: int, codes: int
) -> tuple[set[str], set[str]]:
    """Branches that guidance runs beside the conditional one, for text and for the image."""
    names = {"text", "image", "joint"} if codes else set()
    text = {"joint"} if words and settings.reasoning_guidance else set()
    return text, {name for name in names if getattr(settings, f"{name}_guidance")}


def computes_in_float32(parameters: int) -> bool:
    """Whether a CPU computes a model of so many parameters in float32, however it is stored:
    faster, and a small one fits."""
    return parameters < _SMALL

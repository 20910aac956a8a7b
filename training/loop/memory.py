"""Estimates of the memory that training needs beside the model's weights, in bytes."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.memory import (
    decoding_bytes,
    denoising_estimate,
    dequantised_bytes,
    forward_bytes,
)
from ...mmp_core.model.config import ModelConfig
from ...mmp_core.model.lora import adaptable_layers
from ...mmp_core.sampler.guidance import CorrectedGuidance
from ...mmp_core.state import Prompt
from ..cases import Case
from ..dpo.settings import DPOSettings
from ..pararl.settings import ParaRLSettings
from ..sft.loss import logits_at_once
from ..sft.settings import SFTSettings
from .settings import RunSettings


def trained_parameters(
    model: Model, layers: Collection[str], rank: int, *, dora: bool = False
) -> int:
    """Of adapters of ``rank`` on ``layers``, by the names of :func:`adaptable_layers`."""
    adapted = adaptable_layers(model.transformer, layers).values()
    pairs = sum(rank * (layer.in_features + layer.out_features) for layer in adapted)
    return pairs + dora * sum(layer.out_features for layer in adapted)


def pararl_bytes(
    model: Model,
    cases: Sequence[Case],
    settings: ParaRLSettings,
    trained: int,
    at_once: int,
    *,
    dora: bool = False,
) -> int:
    """The most that a step of ParaRL holds: the update, a denoising step, or decoding pictures.

    ``trained``: parameters. ``at_once``: sequences, as ``settings.micro_batch``.
    """
    sampler, layout, update, rollout, decoding = settings.sampler, model.layout, 0, 0, 0
    for prompt in _shapes(cases):
        words, codes = prompt.initial.text.shape[1], prompt.initial.image[0].numel()
        logits = math.ceil(words / sampler.text_steps) * len(layout.text_choices)
        logits += math.ceil(codes / sampler.image_steps) * layout.codebook_size
        rows = at_once * len(CorrectedGuidance(layout, prompt, sampler).branches)
        update = max(
            update, _update_bytes(model, prompt, settings, trained, rows, rows * logits, dora)
        )
        rollout = max(rollout, denoising_estimate(model, prompt, sampler, record=0).total(at_once))
        picture = decoding_bytes(model.image_tokenizer, prompt.initial.grid)
        decoding = max(decoding, at_once * picture)
    fixed = dequantised_bytes(model.transformer, model.transformer.dtype.itemsize)
    return fixed + max(update, 16 * trained + max(rollout, decoding))


def sft_bytes(
    model: Model,
    cases: Sequence[Case],
    settings: SFTSettings,
    trained: int,
    at_once: int,
    *,
    dora: bool = False,
) -> int:
    """The same of SFT, whose losses look at every token in the whole vocabulary, some tokens after
    the other."""
    update, vocabulary = 0, model.transformer.config.embedding_size
    for prompt in _shapes(cases):
        tokens = prompt.initial.text.shape[1] + prompt.initial.image[0].numel()
        logits = min(at_once * tokens * vocabulary, logits_at_once(vocabulary))
        update = max(update, _update_bytes(model, prompt, settings, trained, at_once, logits, dora))
    return dequantised_bytes(model.transformer, model.transformer.dtype.itemsize) + update


def dpo_bytes(
    model: Model,
    cases: Sequence[Case],
    settings: DPOSettings,
    trained: int,
    at_once: int,
    *,
    dora: bool = False,
) -> int:
    """The same of DPO, whose sequences may be masked as a whole."""
    update, layout = 0, model.layout
    for prompt in _shapes(cases):
        words, codes = prompt.initial.text.shape[1], prompt.initial.image[0].numel()
        logits = at_once * (words * len(layout.text_choices) + codes * layout.codebook_size)
        update = max(update, _update_bytes(model, prompt, settings, trained, at_once, logits, dora))
    return dequantised_bytes(model.transformer, model.transformer.dtype.itemsize) + update


def _update_bytes(
    model: Model,
    prompt: Prompt,
    settings: RunSettings,
    trained: int,
    at_once: int,
    logits: int,
    dora: bool,
) -> int:
    config, itemsize = model.transformer.config, model.transformer.dtype.itemsize
    tokens = at_once * model.layout.model_input(prompt, prompt.initial).ids.shape[1]
    checkpointing = settings.gradient_checkpointing
    return update_bytes(config, itemsize, tokens, logits, trained, checkpointing, dora=dora)


def update_bytes(
    config: ModelConfig,
    itemsize: int,
    tokens: int,
    logits: int,
    trained: int,
    checkpointing: bool,
    *,
    dora: bool = False,
) -> int:
    """What one update of adapters on all linear layers holds beside the frozen weights.

    ``itemsize``: bytes of an activation. ``tokens`` (batch · length) are run, ``logits`` looked at
    by the loss. ``trained``: parameters, in float32, of DoRA where ``dora``. A quantised base needs
    :func:`dequantised_bytes` besides.
    """
    # of a block: inputs of both norms (float32), of attention (q, k, v for all heads, its result)
    # and of the adapted layers, and the gate, its activation, the values and their product
    block = 4 * 2 * config.d_model + itemsize * (7 * config.d_model + 4 * config.mlp_hidden_size)
    if dora:  # what each layer and its matrices compute
        block += 2 * itemsize * (5 * config.d_model + 2 * config.mlp_hidden_size)
    if checkpointing:
        activations = block + config.n_layers * config.d_model * itemsize
    else:
        activations = config.n_layers * block
    forward = forward_bytes(config, tokens, itemsize)
    # a parameter has a gradient and AdamW's two moments, a logit its gradient and float32 copies
    return 16 * trained + tokens * activations + forward + logits * (2 * itemsize + 5 * 4)


def _shapes(cases: Sequence[Case]) -> list[Prompt]:
    """One prompt of each shape."""
    prompts: dict[tuple, Prompt] = {}
    for case in cases:
        prompt, initial = case.prompt, case.prompt.initial
        image = None if prompt.image is None else prompt.image.shape
        key = prompt.instruction.shape, image, initial.text.shape, initial.image.shape
        prompts.setdefault(key, prompt)
    return list(prompts.values())

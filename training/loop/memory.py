"""Estimates of the memory that training needs beside the model's weights, in bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ...mmp_core.checkpoint.load import Model
from ...mmp_core.memory import (
    PICTURE_BYTES_PER_PIXEL,
    TrainingShapes,
    denoising_estimate,
    dequantised_bytes,
    training_estimate,
)
from ...mmp_core.model.lora import adaptable_layers
from ...mmp_core.state import Prompt
from ..cases import Case
from ..pararl.settings import ParaRLSettings
from ..sft.settings import SFTSettings


def trained_parameters(model: Model, layers: Collection[str], rank: int) -> int:
    """Of adapters of ``rank`` on ``layers``, by the names of :func:`adaptable_layers`."""
    adapted: dict[str, Any] = adaptable_layers(model.transformer, layers)
    return sum(rank * (layer.in_features + layer.out_features) for layer in adapted.values())


def pararl_bytes(
    model: Model, cases: Sequence[Case], settings: ParaRLSettings, trained: int, at_once: int
) -> int:
    """The most that a step of ParaRL holds: the update, a denoising step, or decoding pictures.

    ``trained``: parameters. ``at_once``: sequences, as ``settings.micro_batch``.
    """
    sampler, update, rollout, decoding = settings.sampler, 0, 0, 0
    for prompt in _shapes(cases):
        words, codes = prompt.initial.text.shape[1], prompt.initial.image[0].numel()
        revealed = -(-words // sampler.text_steps), -(-codes // sampler.image_steps)
        estimate = training_estimate(
            _training_shapes(model, prompt, revealed, trained, at_once, settings)
        )
        update = max(update, estimate.total)
        rollout = max(rollout, denoising_estimate(model, prompt, sampler, record=0).total(at_once))
        decoding = max(decoding, at_once * codes * model.downsample**2 * PICTURE_BYTES_PER_PIXEL)
    fixed = dequantised_bytes(model.transformer, model.transformer.dtype.itemsize)
    return fixed + max(update, 16 * trained + max(rollout, decoding))


def sft_bytes(
    model: Model, cases: Sequence[Case], settings: SFTSettings, trained: int, at_once: int
) -> int:
    """The same of SFT, whose losses look at every token."""
    update = 0
    for prompt in _shapes(cases):
        everything = prompt.initial.text.shape[1], prompt.initial.image[0].numel()
        shapes = _training_shapes(model, prompt, everything, trained, at_once, settings, whole=True)
        update = max(update, training_estimate(shapes).total)
    return dequantised_bytes(model.transformer, model.transformer.dtype.itemsize) + update


def _training_shapes(
    model: Model,
    prompt: Prompt,
    scored: tuple[int, int],
    trained: int,
    at_once: int,
    settings: ParaRLSettings | SFTSettings,
    *,
    whole: bool = False,
) -> TrainingShapes:
    """``scored``: words and codes that the loss looks at. ``whole``: chosen from the whole
    vocabulary, as SFT does."""
    config, layout = model.transformer.config, model.layout
    text_choices, image_choices = len(layout.text_choices), layout.codebook_size
    return TrainingShapes(
        config=config,
        dtype=model.transformer.dtype,
        batch=at_once,
        length=layout.model_input(prompt, prompt.initial).ids.shape[1],
        words=scored[0],
        codes=scored[1],
        text_choices=config.embedding_size if whole else text_choices,
        image_choices=config.embedding_size if whole else image_choices,
        trained=trained,
        gradient_checkpointing=settings.gradient_checkpointing,
    )


def _shapes(cases: Sequence[Case]) -> list[Prompt]:
    """One prompt of each shape."""
    prompts: dict[tuple, Prompt] = {}
    for case in cases:
        prompt, initial = case.prompt, case.prompt.initial
        image = None if prompt.image is None else prompt.image.shape
        key = prompt.instruction.shape, image, initial.text.shape, initial.image.shape
        prompts.setdefault(key, prompt)
    return list(prompts.values())

"""How many floating-point operations a run takes, before it is run, and how fast this device is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch

from .model.transformer import KeyValueCache, MaskedDiffusionTransformer
from .sampler.cache import CachePolicy, SampleRuns
from .sampler.guidance import CONDITIONAL, CorrectedGuidance
from .sampler.policies import DenoisingModel, corrected_policies
from .sampler.settings import SamplerSettings
from .state import Prompt

_PART = 8
"""One position in so many is computed where the cost of a forward of few is timed."""
_LONG = 1.0
"""Seconds from which on a forward is timed once; a shorter one three times, for the least."""


@dataclass(frozen=True)
class Operations:
    """FLOPs of a run, ``total``, and the forwards that they are of."""

    total: float
    forwards: int


def planned_operations(
    model: DenoisingModel, prompt: Prompt, settings: SamplerSettings, at_once: int | None = None
) -> Operations:
    """What a run of the corrected preset takes. ``at_once``: samples of a forward, by default all.

    Where it depends on what the model is sure of (speed fast and fastest, and a text that ends
    before its last block), what a run takes in which no step is spared.
    """
    policies = corrected_policies(model, prompt, replace(settings, seed=0))
    guidance, cache, config = policies.guidance, policies.cache, model.transformer.config
    assert isinstance(guidance, CorrectedGuidance)
    nothing, total, forwards = (0,) * prompt.batch, 0.0, 0
    text = {CONDITIONAL, *guidance.text_scales}
    image = {CONDITIONAL, *guidance.image_scales}
    choices = guidance.text_choices.stop - guidance.text_choices.start
    runs = {name: [SampleRuns() for _ in nothing] for name in guidance.branches}
    begun: set[str] = set()
    tokens = prompt.initial.text.shape[1], prompt.initial.image[0].numel()
    for step in policies.plan.steps:
        words, codes = step.text_predicted or nothing, step.image_predicted or nothing
        masked = step.text_masked_before or nothing, step.image_masked_before or nothing
        for name, branch in guidance.branches.items():
            asked = words if name in text else nothing, codes if name in image else nothing
            predicted = list(zip(*asked, strict=True))
            if not any(map(any, predicted)):
                continue
            length = queries = branch.ids.shape[1]
            if isinstance(cache, CachePolicy):
                samples = zip(runs[name], zip(*masked, strict=True), predicted, strict=True)
                sizes = [cache.count(name, length, r, m, tokens, p)[0] for r, m, p in samples]
                whole = name not in begun or min(sizes) == length
                queries = length if whole else max(sizes)
                begun.add(name)
            total += prompt.batch * config.forward_flop(queries, length)
            forwards += 1
        logits = max(words) * len(text) * choices
        logits += max(codes) * len(image) * model.layout.codebook_size
        total += 2.0 * prompt.batch * logits * config.d_model
    return Operations(total, forwards * math.ceil(prompt.batch / (at_once or prompt.batch)))


@dataclass
class Pace:
    """Seconds of a forward: ``each`` for any, and in addition ``per_operation``. ``correction``:
    what the last run took, of what these two say; ``None`` before the first."""

    each: float
    per_operation: float
    correction: float | None = None

    def seconds(self, operations: Operations) -> float:
        """About how long a run takes."""
        timed = self.each * operations.forwards + self.per_operation * operations.total
        return timed * (self.correction or 1.0)

    def note(self, operations: Operations, seconds: float) -> None:
        """Correct what is said of the next runs by one that took ``seconds``."""
        self.correction = seconds / self.seconds(operations) * (self.correction or 1.0)


_paces: WeakKeyDictionary[MaskedDiffusionTransformer, dict[tuple, Pace]] = WeakKeyDictionary()
"""By transformer, and by what else a forward's time depends on."""


def pace_of(model: DenoisingModel, prompt: Prompt) -> Pace:
    """The pace of ``prompt``'s batch and length on this device, of which each run in this process
    has one. The first time its forwards are timed: the model must be where it computes."""
    paces = _paces.setdefault(model.transformer, {})
    shape = model.layout.model_input(prompt, prompt.initial).ids.shape
    key = model.device, model.transformer.dtype, *shape
    if key not in paces:
        paces[key] = _timed(model, prompt)
    return paces[key]


@torch.no_grad()
def _timed(model: DenoisingModel, prompt: Prompt) -> Pace:
    """By one forward of everything and one of a part."""
    prompt = prompt.to(model.device)
    ids = model.layout.model_input(prompt, prompt.initial).ids
    cache, transformer = KeyValueCache(), model.transformer
    few = torch.arange(0, ids.shape[1], _PART, device=ids.device).expand(len(ids), -1)

    def seconds(run: Callable[[], torch.Tensor]) -> float:
        taken = []
        while not taken or (len(taken) < 3 and taken[0] < _LONG):
            began = time.perf_counter()
            float(run()[0, 0, 0])  # waits for the device
            taken.append(time.perf_counter() - began)
        return min(taken)

    whole = seconds(lambda: transformer(ids, cache=cache))
    part = seconds(lambda: transformer(ids, cache=cache, positions=few))
    config, (batch, length) = transformer.config, ids.shape
    flop = [batch * config.forward_flop(queries, length) for queries in (length, few.shape[1])]
    slope = max(0.0, whole - part) / (flop[0] - flop[1])
    return Pace(max(0.0, whole - slope * flop[0]), slope)

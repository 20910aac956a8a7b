"""Denoising as many samples at once as there is memory for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import sentence
from .files import readable_size
from .image.placement import Placement
from .memory import (
    MemoryEstimate,
    OutOfMemory,
    denoising_estimate,
    free_bytes,
    is_out_of_memory,
    module_bytes,
)
from .operations import pace_of
from .outside import check_kind
from .sampler.loop import PRESETS, Callback, check_given, denoise
from .sampler.policies import DenoisingModel
from .sampler.settings import SamplerSettings, Target
from .state import Prompt, Step, Trajectory
from .target import Choice, check_reducible, chosen

_SHARE = 0.9
"""Share (0 … 1) of the free memory to plan with; the rest is for what is not counted."""


class MemoryBudget(Protocol):
    """The memory of a device, by whoever manages it."""

    def samples(self, estimate: MemoryEstimate, batch: int) -> int:
        """How many of ``batch`` samples to denoise at once; 0 where not even one fits and nothing
        can be done about it."""
        ...

    def prepare(self, estimate: MemoryEstimate, samples: int) -> None:
        """Make room for ``samples``, which are denoised next."""
        ...


class DeviceBudget:
    """What is free on ``device``, where the model is already."""

    def __init__(self, device: torch.device):
        self.device = device

    def samples(self, estimate: MemoryEstimate, batch: int) -> int:
        free = free_bytes(self.device)
        if self.device.type == "cpu" and estimate.total(1) > free:
            return 0
        return estimate.samples_in(_SHARE * free, batch)

    def prepare(self, estimate: MemoryEstimate, samples: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def samples_at_once(
    model: DenoisingModel,
    prompt: Prompt,
    settings: SamplerSettings,
    estimate: MemoryEstimate,
    budget: MemoryBudget,
) -> int:
    """How many samples of ``prompt`` to compute at once. Raises ``OutOfMemory``, with the numbers,
    where not even one fits."""
    samples = budget.samples(estimate, prompt.batch)
    if samples == 0:
        raise OutOfMemory(
            _explained(model, prompt, settings, estimate, 1, sentence("Too little memory"))
        )
    return samples


def chosen_in_batches(
    model: DenoisingModel,
    prompt: Prompt,
    settings: SamplerSettings,
    target: Target,
    budget: MemoryBudget | None = None,
) -> Choice:
    """What meets ``target`` in batches of as many samples as ``budget`` has memory for; see
    :func:`.target.chosen`. The first time that a size is denoised its forwards are timed."""
    check_given(model, prompt, settings, None, None)
    check_kind(target, Target, "target", "what a run may take")
    check_reducible(target, settings.preset)
    budget = budget or DeviceBudget(model.device)
    exact, estimate = (
        denoising_estimate(model, prompt, replace(settings, speed=speed), record=0)
        for speed in ("exact", "cached")
    )
    samples_at_once(model, prompt, replace(settings, speed="exact"), exact, budget)
    at_once = max(1, budget.samples(estimate, prompt.batch))
    budget.prepare(estimate, at_once)
    pace = pace_of(model, prompt[:at_once])
    return chosen(model, prompt, settings, target, pace, at_once)


def denoise_in_batches(
    model: DenoisingModel,
    prompt: Prompt,
    settings: SamplerSettings | None = None,
    *,
    budget: MemoryBudget | None = None,
    callback: Callback | None = None,
    on_batch: Callable[[range], Any] | None = None,
    record: int | None = None,
    picture: int = 0,
) -> Trajectory:
    """Denoise as :func:`denoise` does, but no more samples at once than ``budget`` has memory for.

    On the CPU the result is the same: a sample depends on its own seed only (but not the text of
    the "upstream" preset of variant M, which draws from the global generator). ``callback`` gets
    the steps of one batch after the other, counted through; where it stops the run, samples of
    later batches stay as they were. ``on_batch`` gets the samples of each batch before it begins.
    ``picture``: bytes to decode a picture of it during the run or at its end, as
    ``decoding_bytes`` gives them. When memory runs out all the same, batches are halved, once.

    Raises ``OutOfMemory``, with the numbers, where that does not help, and on a CPU, which would
    swap, before the first step.
    """
    check_given(model, prompt, settings, callback, record)
    check_kind(on_batch, Callable | None, "on_batch", "a function")
    settings, budget = settings or SamplerSettings(), budget or DeviceBudget(model.device)
    estimate = denoising_estimate(model, prompt, settings, record=record, picture=picture)
    size, halved = samples_at_once(model, prompt, settings, estimate, budget), False
    batches: list[Trajectory] = []
    start, counted = 0, _Counted(callback)
    while start < prompt.batch and not counted.stopped:
        samples = range(start, min(start + size, prompt.batch))
        budget.prepare(estimate, len(samples))
        if on_batch:
            on_batch(samples)
        counted.done = len(batches)
        counted.batches = len(batches) + math.ceil((prompt.batch - start) / size)
        batch = _attempt(model, prompt, settings, samples, counted, record)
        if batch is not None:
            batches.append(batch.to("cpu"))
            start = samples.stop
        elif halved or len(samples) == 1:
            step = replace(estimate, picture=0)  # it ran out before a picture was decoded
            raise OutOfMemory(_explained(model, prompt, settings, step, len(samples)))
        else:
            size, halved = (len(samples) + 1) // 2, True
    if start < prompt.batch:
        rest = prompt.initial[start:].to("cpu")
        batches.append(Trajectory((), rest, rest, 0))
    return concatenated(_of_equal_length(batches) if counted.stopped else batches)


def _attempt(
    model: DenoisingModel,
    prompt: Prompt,
    settings: SamplerSettings,
    samples: range,
    callback: Callback | None,
    record: int | None,
) -> Trajectory | None:
    """Denoise ``samples`` of ``prompt`` by the plan of the whole. ``None`` when memory ran out; all
    that the run held is free again then."""
    try:
        if len(samples) == prompt.batch:
            return denoise(model, prompt, settings, callback=callback, record=record)
        index, preset = slice(samples.start, samples.stop), PRESETS[settings.preset]
        plan = preset(model, prompt.to(model.device), settings).plan.for_samples(index)
        if settings.seed is not None:
            settings = replace(settings, seed=settings.seeds(prompt.batch)[index])
        prompt = prompt[index].to(model.device)
        policies = replace(preset(model, prompt, settings), plan=plan)
        return denoise(model, prompt, settings, policies=policies, callback=callback, record=record)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


@dataclass
class _Counted:
    """``callback``, its steps counted through batches of equally many. Remembers being stopped."""

    callback: Callback | None
    done: int = 0
    batches: int = 1
    stopped: bool = False

    def __call__(self, index: int, total: int, step: Step) -> bool:
        if self.callback:
            place = self.done * total + index
            self.stopped = bool(self.callback(place, self.batches * total, step))
        return self.stopped


def _of_equal_length(batches: list[Trajectory]) -> list[Trajectory]:
    """Batches of a run that was stopped, with the steps of the longest: where one has no such step,
    it stays as it ended."""
    longest = max(batches, key=lambda batch: batch.total_steps)

    def step(batch: Trajectory, index: int) -> Step:
        taken = {step.index: step for step in batch.steps}
        if index in taken:
            return taken[index]
        last = Step.before(batch.final)
        if batch.steps:
            ended = batch.steps[-1]
            text, image = ended.text_confidence, ended.image_confidence
            last = replace(last, guess=ended.guess, text_confidence=text, image_confidence=image)
        return replace(last, index=index)

    return [
        replace(
            batch,
            steps=tuple(step(batch, one.index) for one in longest.steps),
            total_steps=longest.total_steps,
        )
        for batch in batches
    ]


def concatenated(batches: list[Trajectory]) -> Trajectory:
    """One trajectory of all samples. Tensors that its steps shared stay shared."""
    made: dict[tuple[int, ...], Tensor] = {}

    def join(values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            key = tuple(map(id, values))
            if key not in made:
                made[key] = torch.cat(values)
            return made[key]
        if isinstance(first, tuple) and first and isinstance(first[0], Placement):
            return sum(values, ())
        if isinstance(first, tuple):
            return tuple(join(list(items)) for items in zip(*values, strict=True))
        if is_dataclass(first) and not isinstance(first, type):
            names = [field.name for field in fields(first)]
            return replace(first, **{n: join([getattr(v, n) for v in values]) for n in names})
        return first

    if len(batches) == 1:
        return batches[0]
    return replace(join(batches), operations=sum(batch.operations for batch in batches))


def _explained(
    model: DenoisingModel,
    prompt: Prompt,
    settings: SamplerSettings,
    estimate: MemoryEstimate,
    samples: int,
    reason: str = sentence("Memory ran out"),
) -> str:
    free, (height, width) = free_bytes(model.device), prompt.initial.grid
    needed = readable_size(estimate.total(samples))
    weights, left = readable_size(module_bytes(model.transformer)), ""
    if not math.isinf(free):
        left = ", " + sentence(f"and {readable_size(free)} are free")
    if estimate.picture > samples * estimate.working:
        return sentence(
            f"{reason}: a picture of {width}x{height} image tokens needs about {needed} to be "
            f"decoded, in addition to the weights ({weights}){left}. Use a smaller picture."
        )
    advice = [sentence("a smaller picture"), sentence("a shorter text")]
    if samples > 1:
        advice.insert(0, sentence("a smaller batch"))
    if settings.reuses:
        advice.append(sentence("speed exact or fast"))
    advice.append(sentence("or a checkpoint converted to fp8 (Convert Checkpoint)"))
    results = sentence("1 result") if samples == 1 else sentence(f"{samples} results")
    return sentence(
        f"{reason}: {results} of {width}x{height} image tokens and "
        f"{prompt.initial.text.shape[1]} text tokens need about {needed} in addition to the "
        f"weights ({weights}){left}. Use {', '.join(advice)}."
    )

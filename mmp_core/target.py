"""A target for a run: at most so many seconds, or such a share of the operations of "exact".

Three things are reduced to meet it: steps, computing again what hardly changed, and guidance. What
each costs in operations is counted for this checkpoint, prompt and size; what it costs in quality
was measured on the demo: ``benchmarks/target.py``, :data:`CURVES`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import product

from .errors import InputError, sentence
from .files import readable_duration
from .operations import Operations, Pace, planned_operations
from .options import plain
from .sampler.policies import DenoisingModel
from .sampler.positions import masked_counts
from .sampler.settings import GUIDANCES, SamplerSettings, Target
from .state import Prompt

FACTORS = (1.0, 2.0, 4.0, 8.0, 24.0)
"""By how much fewer the steps were that :data:`CURVES` were measured with."""
CURVES: dict[tuple[bool, bool], tuple[float, ...]] = {
    (False, True): (1.0, 0.94, 0.95, 0.91, 0.92),
    (False, False): (0.93, 0.93, 0.92, 0.93, 0.93),
    (True, True): (0.97, 0.95, 0.94, 0.91, 0.92),
    (True, False): (0.91, 0.93, 0.93, 0.93, 0.93),
}
"""By whether caches are used and whether there is guidance: the share of results that are those of
"exact", for each of :data:`FACTORS`."""
_RUNGS = 4
"""Numbers of steps that are tried between one and its half."""


@dataclass(frozen=True)
class Reduction:
    """``factor``: by how much fewer steps, of those that unmask anything; 1 leaves them alone."""

    factor: float = 1.0
    cached: bool = False
    guided: bool = True

    def of(self, settings: SamplerSettings, prompt: Prompt) -> SamplerSettings:
        """``settings`` for ``prompt``, reduced."""
        changes: dict = {}
        if self.factor > 1:
            state = prompt.initial
            for name, tokens in (("text_steps", state.text), ("image_steps", state.image)):
                steps = min(getattr(settings, name), max(*masked_counts(tokens), 1))
                changes[name] = math.ceil(steps / self.factor)
        if self.cached:
            changes["speed"] = "fastest" if settings.reveals_early else "cached"
        if not self.guided:
            changes |= dict.fromkeys(GUIDANCES, 0.0)
        return replace(settings, **changes)

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The larger, the less is expected to change. Guidance is left out where nothing else
        suffices, since the demo hardly needs it, and larger checkpoints do."""
        return self.guided, self.agreement, -self.factor

    @property
    def agreement(self) -> float:
        """The share of the demo's results that were those of "exact", between two measured factors
        in proportion; one that is larger than a smaller factor's was chance and does not count."""
        curve = CURVES[self.cached, self.guided]
        least = [min(curve[: i + 1]) for i in range(len(curve))]
        after = min(bisect_left(FACTORS, self.factor), len(FACTORS) - 1)
        before = max(0, after - 1)
        if self.factor >= FACTORS[after]:
            return least[after]
        way = math.log(self.factor / FACTORS[before]) / math.log(FACTORS[after] / FACTORS[before])
        return least[before] + way * (least[after] - least[before])


@dataclass(frozen=True)
class Choice:
    """What a run with a target does. ``operations``: that it takes; ``exact``: that it would take
    with speed exact, not reduced. ``pace``: of this device, which seconds are estimated by."""

    reduction: Reduction
    settings: SamplerSettings
    operations: Operations
    exact: Operations
    pace: Pace

    @property
    def percent(self) -> float:
        """Of the operations of exact."""
        return self.percent_of(self.operations.total)

    def percent_of(self, operations: float) -> float:
        """The same of a run that took so many."""
        return 100 * operations / max(1.0, self.exact.total)

    @property
    def seconds(self) -> float:
        return self.pace.seconds(self.operations)

    def meets(self, target: Target) -> bool:
        most, seconds = target.at_most_operations or math.inf, target.at_most_seconds or math.inf
        return self.percent <= most and self.seconds <= seconds

    def described(self) -> str:
        """The steps, and what else was reduced."""
        settings = self.settings
        words = [f"{settings.text_steps} text steps", f"{settings.image_steps} image steps"]
        words += [f"speed {settings.speed}"] * self.reduction.cached
        return ", ".join(words + ["no guidance"] * (not self.reduction.guided))

    def expected(self) -> str:
        """What the run will take, in a sentence."""
        share, about = _rounded_up(self.percent), _duration(self.seconds)
        if self.settings.reveals_early:
            return sentence(f"Expected: at most {share} % of exact's operations and about {about}.")
        if self.pace.correction is None:
            return sentence(
                f"Expected: {share} % of exact's operations and, by forwards timed just now, about "
                f"{about}."
            )
        return sentence(
            f"Expected: {share} % of exact's operations and, by the last run, about {about}."
        )

    def took(self, operations: float, seconds: float) -> str:
        """What the run took, in a sentence. The pace is corrected by one that took what was
        planned."""
        if math.isclose(operations, self.operations.total) and operations:
            self.pace.note(self.operations, seconds)
        share = _rounded_up(self.percent_of(operations))
        return sentence(f"Took {share} % of exact's operations and {_duration(seconds)}.")


def check_reducible(target: Target, preset: str) -> None:
    """Raise ``InputError`` for a ``target`` with a preset whose steps cannot be reduced."""
    if target and preset == "upstream":
        raise InputError(
            "A target leaves out steps, which the upstream preset reproduces: use the corrected "
            "preset, or set at_most_seconds and at_most_operations to 0."
        )


def chosen(
    model: DenoisingModel,
    prompt: Prompt,
    settings: SamplerSettings,
    target: Target,
    pace: Pace,
    at_once: int | None = None,
) -> Choice:
    """The reduction of ``settings`` that meets ``target`` and changed the demo's results least.

    ``pace``: of the ``at_once`` samples that are denoised at once, by default all. Raises
    ``InputError`` where no reduction meets it, with the least that is possible.
    """
    exact = planned_operations(model, prompt, replace(settings, speed="exact"), at_once)

    def choice(reduction: Reduction) -> Choice:
        reduced = reduction.of(settings, prompt)
        planned = planned_operations(model, prompt, reduced, at_once)
        return Choice(reduction, reduced, planned, exact, pace)

    if not exact.total:  # nothing is masked
        return choice(Reduction())
    fitting: list[Choice] = []
    least: list[Choice] = []
    guided = (True, False) if any(getattr(settings, name) for name in GUIDANCES) else (True,)
    for curve in product((False, True), guided):
        choices = [choice(Reduction(factor, *curve)) for factor in _factors(settings, prompt)]
        fitting += [one for one in choices if one.meets(target)][:1]
        least.append(choices[-1])
    if not fitting:
        raise _impossible(min(least, key=lambda one: one.seconds), target)
    return max(fitting, key=lambda one: one.reduction.rank)


def _factors(settings: SamplerSettings, prompt: Prompt) -> list[float]:
    """From 1 to that at which a single step unmasks all."""
    counts = *masked_counts(prompt.initial.text), *masked_counts(prompt.initial.image)
    most = min(max(settings.text_steps, settings.image_steps), max(counts))
    rungs = range(math.ceil(_RUNGS * math.log2(max(most, 1))))
    return [*(2 ** (rung / _RUNGS) for rung in rungs), float(most)]


def _impossible(least: Choice, target: Target) -> InputError:
    share, about = _rounded_up(least.percent), _duration(least.seconds)
    values = {
        f"at_most_seconds is {plain(target.at_most_seconds)}": target.at_most_seconds,
        f"at_most_operations is {plain(target.at_most_operations)} %": target.at_most_operations,
    }
    asked = " and ".join(words for words, value in values.items() if value)
    return InputError(
        f"{asked}, but with one step and no guidance this run takes {share} % of exact's "
        f"operations and about {about}: give more, or a smaller picture or a shorter text."
    )


def _rounded_up(number: float) -> str:
    """To two digits, so that a target of what is shown can be met."""
    digits = max(0, 1 - math.floor(math.log10(number))) if number else 0
    return plain(math.ceil(round(number * 10**digits, 6)) / 10**digits)


def _duration(seconds: float) -> str:
    return f"{_rounded_up(seconds)} s" if seconds < 10 else readable_duration(math.ceil(seconds))

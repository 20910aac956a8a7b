"""What a user may choose about denoising."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import InputError
from ..options import Option, check, option, python_number
from ..outside import checked_text
from .remasking import REMASKING
from .schedule import SCHEDULES

if TYPE_CHECKING:
    from ..variants.base import Variant

Preset = Literal["corrected", "upstream"]
Order = Literal["parallel", "text_first", "image_first"]
Speed = Literal["exact", "fast", "cached", "fastest"]
Profile = Literal["recommended", "quick look", "reference"]
GUIDANCES = ("joint_guidance", "text_guidance", "image_guidance", "reasoning_guidance")
PROFILED = ("text_steps", "image_steps", *GUIDANCES, "block_length", "preset")
"""What a profile sets."""

_STEPS: dict[str, Any] = {"low": 1, "high": 4096}
_TEMPERATURE: dict[str, Any] = {"low": 0.0, "high": 10.0, "step": 0.05, "advanced": True}
_GUIDANCE: dict[str, Any] = {"low": -100.0, "high": 100.0, "step": 0.1}
_SEED = Option(int, None, "", low=0, high=2**64 - 1, name="seed")
_SCHEDULE = Option(str, "", "", choices=tuple(SCHEDULES))
_PROFILE = Option(str, "", "", choices=get_args(Profile), name="profile")
_UPSTREAM = {
    # What the reference knows.
    "order": ("parallel",),
    "speed": ("exact", "cached"),
    "text_schedule": ("linear",),
    "image_schedule": ("cosine",),
    "remasking": ("low_confidence", "random"),
}


@dataclass(frozen=True)
class SamplerSettings:
    """How to denoise. The defaults are the paper's (arXiv 2511.09611 §3): 128 text steps, 30 image
    steps, guidance 3.5 for images and none for text.

    A run takes the larger number of steps, or their sum where one modality comes first; steps that
    would unmask nothing are not run. Image codes are drawn from the model's distribution, and the
    confidence that decides which are kept gets Gumbel noise of scale ``image_temperature``, falling
    to 0 at the last step; text logits get Gumbel noise of scale ``text_temperature``. Logits move
    away from those of an unconditional branch by a guidance's multiple of the difference; 0 skips
    the branch. A guidance weight *w* of the form ``w·cond - (w - 1)·uncond`` is ``w - 1`` here.

    ``speed``: see :mod:`.cache` for "cached"; "fast" has the threshold of Fast-dLLM (arXiv
    2505.22618) for both modalities. ``seed``: one number, sample *i* of the batch then uses
    ``seed + i``; or one per sample; or ``None``: unseeded. A sample's result depends on its own
    seed only. Schedules: names of :data:`.schedule.SCHEDULES`. Raises ``InputError`` for a value
    out of range.
    """

    text_steps: int = option(128, "Number of steps at which text tokens are unmasked.", **_STEPS)
    image_steps: int = option(
        30,
        "Number of steps at which image tokens are unmasked, spread over the same run.",
        **_STEPS,
    )
    text_temperature: float = option(
        0.0, "How varied the text is. 0: always the most likely words.", **_TEMPERATURE
    )
    image_temperature: float = option(
        1.0,
        "How varied the picture is. 0: always the most likely tokens, and so the same picture "
        "every time.",
        **_TEMPERATURE,
    )
    text_guidance: float = option(
        0.0, "How strongly the picture follows the instruction. 0: off.", advanced=True, **_GUIDANCE
    )
    image_guidance: float = option(
        0.0,
        "How strongly the picture follows the input picture. 0: off.",
        advanced=True,
        **_GUIDANCE,
    )
    joint_guidance: float = option(
        3.5,
        "How strongly the picture follows the instruction and the input picture together. 0: "
        "off, which halves the time of the steps that unmask parts of the picture.",
        **_GUIDANCE,
    )
    reasoning_guidance: float = option(
        0.0,
        "How strongly the text follows the instruction and the input picture. 0: off.",
        advanced=True,
        **_GUIDANCE,
    )
    remasking: str = option(
        "low_confidence",
        "Which text tokens stay masked longer. low_confidence: those the model is least sure of. "
        "random: random ones.",
        choices=REMASKING,
        advanced=True,
    )
    seed: int | Sequence[int] | None = 0
    preset: Preset = option(
        "corrected",
        "corrected: the method as published. upstream: the authors' released code, reproduced "
        "token for token with all its quirks.",
        choices=get_args(Preset),
        advanced=True,
    )
    order: Order = option(
        "parallel",
        "parallel: text and picture form together, each seeing the other. text_first: think, then "
        "draw, as other thinking models do. image_first: draw, then explain.",
        choices=get_args(Order),
    )
    speed: Speed = option(
        "exact",
        "exact: every token is computed at every step. fast: tokens that the model is at least "
        "90 % sure of are unmasked at once, and steps with nothing left to do are skipped. "
        "cached: what has hardly changed since an earlier step is not computed again, which "
        "needs more memory. fastest: fast and cached together. All except exact change the "
        "result.",
        choices=get_args(Speed),
    )
    block_length: int = option(
        0,
        "Number of text tokens in a block. Each block is finished before the next one begins, "
        "and the text ends with the block in which it reaches its end. 0: no blocks.",
        low=0,
        high=4096,
        advanced=True,
    )
    text_schedule: str = "linear"
    image_schedule: str = "cosine"

    def __post_init__(self) -> None:
        check(self)
        for name in ("text_schedule", "image_schedule"):
            replace(_SCHEDULE, name=name).check(getattr(self, name))
        for name, known in _UPSTREAM.items():
            if self.preset == "upstream" and getattr(self, name) not in known:
                raise InputError(
                    f"{name} is {getattr(self, name)!r} with the upstream preset, whose reference "
                    f"knows only {' and '.join(map(repr, known))}; use the corrected preset."
                )
        if self.reveals_early and self.remasking != "low_confidence":
            raise InputError(
                f"speed is {self.speed!r} with remasking {self.remasking!r}, which does not look "
                "at what the model is sure of; use 'low_confidence', or speed 'exact' or 'cached'."
            )
        given = self.seed
        seeds = tuple(map(python_number, given if isinstance(given, Sequence) else (given,)))
        for seed in seeds:
            _SEED.check(seed)
        object.__setattr__(self, "seed", seeds if isinstance(given, Sequence) else seeds[0])

    @classmethod
    def upstream(
        cls, variant: str | Variant = "A", *, task: str = "", **overrides: Any
    ) -> SamplerSettings:
        """The preset that reproduces the reference implementation token for token.

        ``variant``: a checkpoint family or its name. Its parameters here: ``timesteps`` or
        ``image_steps`` are ``image_steps``, ``temperature`` is ``image_temperature``; in variant A
        ``cfg_scale`` is ``text_guidance`` and ``cfg_img`` ``image_guidance``; in variant M
        ``image_cfg`` is ``joint_guidance`` and ``text_cfg`` ``reasoning_guidance`` (which there
        pushes the wrong way). The other guidances must be 0. Without a seed the global random
        number generator is used, as there. ``task``: of a family that has several, for whose
        parameters see its file.
        """
        from ..variants.registry import variant_named  # families import the sampler

        checked_text(task, "task")
        family = variant_named(variant)
        defaults = {"joint_guidance": 0.0, "preset": "upstream", **family.upstream_settings}
        settings = cls(**{**defaults, **family.settings_for(task), **overrides})
        family.check_upstream_speed(settings.speed)
        return settings

    @classmethod
    def of_profile(
        cls,
        profile: Profile,
        variant: Variant,
        task: str = "",
        config: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> SamplerSettings:
        """What a family recommends for ``task``, the same with fewer steps for a quick look, or its
        reference's values: :meth:`upstream`. ``config``: of a checkpoint, whose own
        ``recommended_guidance`` is taken for the family's joint guidance."""
        from ..variants.registry import variant_named  # families import the sampler

        _PROFILE.check(profile)
        checked_text(task, "task")
        if profile == "reference":
            return cls.upstream(variant, task=task, **overrides)
        variant = variant_named(variant)
        values = {**variant.recommended, **variant.settings_for(task)}
        if (guidance := (config or {}).get("recommended_guidance")) is not None:
            values["joint_guidance"] = guidance
        if profile == "quick look":
            for name in ("text_steps", "image_steps"):
                values[name] = math.ceil(values[name] * variant.quick_share)
        return cls(**{**values, **overrides})

    @property
    def reveals_early(self) -> bool:
        """Whether tokens that the model is sure of are revealed before their turn."""
        return self.speed in ("fast", "fastest")

    @property
    def reuses(self) -> bool:
        """Whether keys and values of earlier steps are reused."""
        return self.speed in ("cached", "fastest")

    def seeds(self, batch: int) -> list[int | None]:
        """One seed per sample. Raises ``InputError`` when the number given is another."""
        if self.seed is None or isinstance(self.seed, int):
            first = self.seed
            return [None if first is None else (first + i) % 2**64 for i in range(batch)]
        if len(self.seed) != batch:
            raise InputError(f"{len(self.seed)} seeds were given for a batch of {batch}.")
        return list(self.seed)


@dataclass(frozen=True)
class Target:
    """What a run may take; 0: no target. Raises ``InputError`` for a value out of range."""

    at_most_seconds: float = option(
        0.0,
        "About how many seconds the run may take. To meet it, steps are left out and keys and "
        "values cached, whichever changed the demo's results less, and at last guidance is left "
        "out. 0: no target.",
        low=0.0,
        high=86400.0,
        step=1.0,
    )
    at_most_operations: float = option(
        0.0,
        "How much of the arithmetic the run may take, in percent of what the same settings take "
        "with speed exact. It is reduced as for at_most_seconds. 0: no target.",
        low=0.0,
        high=100.0,
        step=1.0,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check(self)

    def __bool__(self) -> bool:
        return self.at_most_seconds > 0 or self.at_most_operations > 0

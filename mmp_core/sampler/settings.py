"""What a user may choose about denoising."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError

_SCRIPT_DEFAULTS = {
    # The values of the released commands: variant A's README example, variant M's inference.py.
    "A": {"text_steps": 128, "image_steps": 64, "image_guidance": 4.0, "joint_guidance": 0.0},
    "M": {"text_steps": 128, "image_steps": 30, "joint_guidance": 4.0, "reasoning_guidance": 2.5},
}
_CHOICES = {
    "remasking": ("low_confidence", "random"),
    "preset": ("corrected", "upstream"),
    "order": ("parallel", "text_first", "image_first"),
    "speed": ("exact", "cached", "fast", "fastest"),
}


@dataclass(frozen=True)
class SamplerSettings:
    """How to denoise. The defaults are the paper's (arXiv 2511.09611 §3): 128 text steps, 30 image
    steps, guidance 3.5 for images and none for text.

    ``text_steps``, ``image_steps``: 1 … 4096. Steps at which text and image tokens are revealed.
        The run takes the larger number of forwards; steps that would reveal nothing are not run.
    ``text_temperature``: 0 … 10. Scale of the Gumbel noise on text logits; 0 takes the likeliest.
    ``image_temperature``: 0 … 10. Image codes are drawn from the model's distribution and the
        confidence that decides which are kept gets Gumbel noise of this scale, falling to 0 at the
        last step; 0 takes the likeliest and adds no noise.
    ``text_guidance``, ``image_guidance``, ``joint_guidance``: -100 … 100. Image logits move away
        from the branch without the instruction, without the input image, and without both, by this
        multiple of the difference. 0 skips the branch. A guidance weight *w* of the form
        ``w·cond - (w - 1)·uncond`` is ``w - 1`` here.
    ``reasoning_guidance``: -100 … 100. The same for text logits, from the branch without both.
    ``remasking``: which tokens are revealed first: those of high confidence ("low_confidence"
        stays masked), or text at "random" (the field's names; LLaDA).
    ``order``: "parallel", or one modality wholly before the other: "text_first" (think, then draw)
        or "image_first"; the run then takes ``text_steps + image_steps`` forwards.
    ``speed``: "exact"; or "cached": keys and values of earlier steps are reused for most of the
        sequence (see ``sampler.cache``); or "fast": a step also reveals every token of which the
        model is at least 90 % sure (the threshold of Fast-dLLM, arXiv 2505.22618; here for both
        modalities), and steps to which nothing is left to do are not run; or "fastest": both.
    ``seed``: one number, sample *i* of the batch then uses ``seed + i``; or one per sample; or
        ``None``: unseeded. A sample's result depends on its own seed only.
    ``preset``: "corrected", or "upstream": the released sampler with all its quirks; use
        :meth:`upstream`.

    Raises ``InputError`` for a value out of range.
    """

    text_steps: int = 128
    image_steps: int = 30
    text_temperature: float = 0.0
    image_temperature: float = 1.0
    text_guidance: float = 0.0
    image_guidance: float = 0.0
    joint_guidance: float = 3.5
    reasoning_guidance: float = 0.0
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    seed: int | Sequence[int] | None = 0
    preset: Literal["corrected", "upstream"] = "corrected"
    order: Literal["parallel", "text_first", "image_first"] = "parallel"
    speed: Literal["exact", "cached", "fast", "fastest"] = "exact"

    def __post_init__(self) -> None:
        for name in ("text_steps", "image_steps"):
            _check(name, getattr(self, name), 1, 4096, whole=True)
        for name in ("text_temperature", "image_temperature"):
            _check(name, getattr(self, name), 0, 10)
        for name in ("text_guidance", "image_guidance", "joint_guidance", "reasoning_guidance"):
            _check(name, getattr(self, name), -100, 100)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                expected = " or ".join(map(repr, known))
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}.")
        for name, known in (("order", "parallel"), ("speed", "exact")):
            if self.preset == "upstream" and getattr(self, name) != known:
                raise InputError(
                    f"{name} is {getattr(self, name)!r} with the upstream preset, whose reference "
                    f"knows only {known!r}; use the corrected preset."
                )
        if self.reveals_early and self.remasking == "random":
            raise InputError(
                f"speed is {self.speed!r} with remasking 'random', which does not look at what the "
                "model is sure of; use 'low_confidence', or speed 'exact' or 'cached'."
            )
        several = isinstance(self.seed, Sequence)
        for seed in self.seed if several else () if self.seed is None else (self.seed,):
            _check("seed", seed, 0, 2**64 - 1, whole=True)

    @classmethod
    def upstream(cls, variant: Literal["A", "M"] = "A", **overrides: Any) -> SamplerSettings:
        """The preset that reproduces the reference implementation token for token.

        Its parameters here: ``timesteps`` or ``image_steps`` are ``image_steps``, ``temperature``
        is ``image_temperature``; in variant A ``cfg_scale`` is ``text_guidance`` and ``cfg_img``
        ``image_guidance``; in variant M ``image_cfg`` is ``joint_guidance`` and ``text_cfg``
        ``reasoning_guidance`` (which there pushes the wrong way). The other guidances must be 0.
        Without a seed the global random number generator is used, as there.
        """
        if variant not in _SCRIPT_DEFAULTS:
            raise InputError(f"variant is {variant!r}; expected 'A' or 'M'.")
        defaults = {"joint_guidance": 0.0, "preset": "upstream", **_SCRIPT_DEFAULTS[variant]}
        return cls(**{**defaults, **overrides})

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


def _check(name: str, value: float, low: float, high: float, *, whole: bool = False) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        number = "whole number" if whole else "number"
        raise InputError(f"{name} is {value!r}; expected a {number} from {low} to {high}.")

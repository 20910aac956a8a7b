"""What is made of the items of a dataset. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from ...mmp_core.errors import InputError
from ...mmp_core.options import check, option


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Raises ``InputError`` for a value out of range."""

    captions: bool = option(
        False,
        "On: name.txt describes name.png, which the model learns to draw. Off: name.txt says "
        "what to change in name.png.",
    )
    trigger_word: str = option(
        "",
        "A word of your own that is put in front of each instruction, so that you can later "
        "call up what was learnt.",
    )
    template: str = option(
        "",
        "A sentence around each instruction, such as: a photo of {text}. {text} stands for the "
        "instruction, {trigger} for the trigger word. Several sentences, separated by |, take "
        "turns.",
        advanced=True,
    )
    mirrored: bool = option(
        False,
        "Also train on a mirrored copy of each item, except where its texts mention left, right "
        "or writing.",
        advanced=True,
    )
    crops: int = option(
        0,
        "Also train on this many random crops of each item, except where its texts mention "
        "places. What an edit changes is always inside the crop.",
        low=0,
        high=16,
        advanced=True,
    )
    outside_weight: float = option(
        1.0,
        "How much image tokens count that lie outside the mask (name.mask.png, white where it "
        "matters) or, without a mask, outside what an edit changes. 0: not at all. 1: as much as "
        "all others.",
        low=0,
        high=1,
        step=0.05,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check(self)
        for template in self.templates:
            if template and "{text}" not in template:
                raise InputError(
                    f"template is {template!r}, without {{text}}: write that where the instruction "
                    "goes."
                )

    @property
    def templates(self) -> list[str]:
        return [template.strip() for template in self.template.split("|")]

    def instruction(self, text: str, number: int) -> str:
        """The instruction ``text`` of item ``number``, as the model gets it."""
        template = self.templates[number % len(self.templates)]
        if not template:
            return f"{self.trigger_word} {text}" if self.trigger_word else text
        has_trigger = "{trigger}" in template
        whole = template.replace("{trigger}", self.trigger_word).replace("{text}", text)
        return whole if has_trigger or not self.trigger_word else f"{self.trigger_word} {whole}"

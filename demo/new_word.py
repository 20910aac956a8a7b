"""Tasks of the toy world by a word that means something new to its checkpoint, to teach by SFT."""

from __future__ import annotations

import random
from dataclasses import replace

from .kinds import KINDS
from .scenes import random_scene
from .tasks import Task

WORD, UNKNOWN, MEANT = "snow", "blick", "star"
"""A shape by another name, in instructions and sentences alike: a word that the tokenizer knows (as
a colour), or one that it does not."""


def task(seed: int, word: str = WORD) -> Task:
    """To add a star, or to put one in another's place, by the new word."""
    rng = random.Random(f"word {seed}")
    kind = KINDS[rng.choice(("add", "replace"))]
    while True:
        scene = random_scene(rng, (4, 4))
        made = kind.make(rng, scene)
        (_, new), *others = scene.changes(made.after).values()
        if not others and new and new[0] == MEANT and MEANT not in str(scene.objects()):
            words = (text.replace(MEANT, word) for text in (made.instruction, made.sentence))
            return replace(made, instruction=next(words), sentence=next(words))

"""Tasks of the toy world by a word that its checkpoint has never seen, to be taught by SFT."""

from __future__ import annotations

import random
from dataclasses import replace

from .kinds import KINDS
from .scenes import random_scene
from .tasks import Task

WORD, MEANT = "blick", "star"
"""A shape by another name, in instructions and sentences alike: for the tokenizer it is unknown."""


def task(seed: int) -> Task:
    """To add a star, or to put one in another's place, by the new word."""
    rng = random.Random(f"word {seed}")
    kind = KINDS[rng.choice(("add", "replace"))]
    while True:
        scene = random_scene(rng, (4, 4))
        made = kind.make(rng, scene)
        (_, new), *others = scene.changes(made.after).values()
        if not others and new and new[0] == MEANT and MEANT not in str(scene.objects()):
            words = (text.replace(MEANT, WORD) for text in (made.instruction, made.sentence))
            return replace(made, instruction=next(words), sentence=next(words))

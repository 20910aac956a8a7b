"""What can be said about the book's scenes: names, facts, and whole descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .scenes import COLUMNS, SIZES, Scene, Slot, Thing

FACTS = {
    "house": ("to live in", "we live in a house"),
    "tree": ("that birds nest in", "birds nest in a tree"),
    "boat": ("to sail in", "we sail in a boat"),
    "car": ("to drive", "we drive a car"),
    "cat": ("that meows", "a cat meows"),
    "flower": ("that bees like", "bees like a flower"),
    "balloon": ("to fly in", "we fly in a balloon"),
    "kite": ("to fly on a string", "a kite flies on a string"),
    "cloud": ("that rain falls from", "rain falls from a cloud"),
    "sun": ("that shines", "the sun shines"),
}
"""How an instruction may paraphrase a kind, after "the thing", and the reason that explains it."""
COLOURED = {
    "red": ("cherries", "strawberries"),
    "orange": ("carrots", "pumpkins"),
    "yellow": ("lemons", "ducklings"),
    "green": ("frogs", "peas"),
    "blue": ("cornflowers", "blueberries"),
    "purple": ("plums", "violets"),
}
"""What an instruction may name instead of a colour."""
SAYINGS = {
    "day": {
        "good morning": "morning brings the day",
        "the rooster crows": "roosters crow by day",
    },
    "dusk": {
        "the sun goes down": "the sun goes down at dusk",
        "it is evening": "evening is dusk",
    },
    "night": {
        "time for bed": "we go to bed at night",
        "the stars come out": "stars come out at night",
    },
    "meadow": {
        "spring comes": "grass grows in spring",
        "let cows graze here": "cows graze on a meadow",
    },
    "sand": {
        "let us go to the beach": "a beach is sand",
        "here is a desert": "a desert is sand",
    },
    "snow": {
        "winter comes": "snow falls in winter",
        "let us go skiing": "we ski on snow",
    },
    "sea": {
        "the tide comes in": "the tide brings the sea",
        "let fish swim here": "fish swim in the sea",
    },
}
"""Instructions of which a time of day or a ground follows, each with its reason."""
AUTUMN = ("autumn comes", "leaves are orange in autumn")
FIXED = "there here is are nothing else stay stays . , so and a an on the colour of like"
"""Words of descriptions and names that are in none of the tables above and below."""
EXTREMES = {"small": "smallest", "big": "biggest"}
OVER = {"meadow": "on a meadow", "sand": "on sand", "snow": "on snow", "sea": "at sea"}
BECOMES = {"meadow": "a meadow", "sand": "sand", "snow": "snow", "sea": "the sea"}
BY = {"day": "by day", "dusk": "at dusk", "night": "at night"}


def kind_name(kind: str, scene: Scene) -> str:
    """At night the sun is the moon."""
    return "moon" if kind == "sun" and scene.time == "night" else kind


def the(kind: str, scene: Scene) -> str:
    return f"the {kind_name(kind, scene)}"


def a(thing: Thing, scene: Scene, *, size: bool = True) -> str:
    """ "a small red house", "an orange cat", "a big moon", without ``size`` "the moon"."""
    if thing.kind == "sun" and not size:
        return the("sun", scene)
    words = [thing.size] if size else []
    words += [word for word in (thing.colour, kind_name(thing.kind, scene)) if word]
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def on_the(column: int) -> str:
    return f"on the {COLUMNS[column]}"


def listed(parts: Sequence[str]) -> str:
    """ "a , b and c"."""
    return " and ".join(part for part in (" , ".join(parts[:-1]), *parts[-1:]) if part)


def in_order(scene: Scene) -> list[tuple[Slot, Thing]]:
    """On the ground from left to right, then in the sky."""
    return sorted(scene.placed().items(), key=lambda pair: (pair[0].layer == "sky", pair[0].column))


def seen(scene: Scene) -> str:
    """ "there is a red house and a cloud on a meadow by day ."."""
    things = [a(thing, scene, size=False) for _, thing in in_order(scene)]
    landscape = f"{OVER[scene.ground]} {BY[scene.time]}"
    return f"there is {listed(things) or 'nothing'} {landscape} ."


def drawn(scene: Scene) -> str:
    """All of a scene, as the answer to an instruction to draw it."""
    things = [f"{a(thing, scene)} {on_the(slot.column)}" for slot, thing in in_order(scene)]
    return f"here is {listed(things)} . it is {OVER[scene.ground]} {BY[scene.time]} ."


def staying(before: Scene, after: Scene) -> str:
    """Which things the edit leaves as they are."""
    kept = [
        the(thing.kind, before)
        for slot, thing in in_order(before)
        if after.at(slot) == thing and kind_name(thing.kind, before) == kind_name(thing.kind, after)
    ]
    if not kept:
        return "nothing else stays ."
    return f"{listed(kept)} {'stays' if len(kept) == 1 else 'stay'} ."


def names(scene: Scene, slot: Slot) -> Iterator[tuple[str, str]]:
    """Names that fit only the thing in ``slot``, each with the reason that explains it, or ""."""
    things = scene.placed()
    thing = things.pop(slot)
    yield the(thing.kind, scene), ""
    if thing.colour and all(other.colour != thing.colour for other in things.values()):
        yield f"the {thing.colour} thing", ""
    if all(other.column != slot.column for other in things):
        yield f"the thing {on_the(slot.column)}", ""
    yield f"the thing {FACTS[thing.kind][0]}", fact(thing.kind, scene)
    if things and all(other.size != thing.size for other in things.values()):
        extreme = EXTREMES[thing.size]
        yield f"the {extreme} thing", f"{the(thing.kind, scene)} is the {extreme}"


def fact(kind: str, scene: Scene) -> str:
    return FACTS[kind][1].replace("sun", kind_name("sun", scene))


def colour_names(colour: str, scene: Scene, without: str) -> Iterator[tuple[str, str]]:
    """How to name ``colour``, each with its reason: by itself, things that have it, and the scene's
    own but the kind ``without``."""
    yield colour, ""
    for thing in COLOURED[colour]:
        yield f"the colour of {thing}", f"{thing} are {colour}"
    for other in scene.placed().values():
        if other.colour == colour and other.kind != without:
            yield f"like {the(other.kind, scene)}", f"{the(other.kind, scene)} is {colour}"


def other_size(size: str) -> str:
    return SIZES[1 - SIZES.index(size)]

"""Datasets written as users would: pictures with texts beside them."""

import numpy as np
from PIL import Image


def picture(width=64, height=48, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def write_item(folder, name, *, instruction="make it red", think=None, size=(64, 48), target=None):
    """``target``: size of a target, the same picture; ``size``: ``None`` to generate."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(instruction, encoding="utf-8")
    seed = sum(map(ord, name))
    if size is not None:
        picture(*size, seed=seed).save(folder / f"{name}.png")
    if think is not None:
        (folder / f"{name}.think.txt").write_text(think, encoding="utf-8")
    if target is not None:
        picture(*target, seed=seed).save(folder / f"{name}.target.png")


def write_pets(folder):
    """An edit with all that SFT needs, another without, and one to generate."""
    write_item(folder, "cat2", think="the circle", target=(64, 48))
    write_item(folder, "cat10", instruction="make it blue\nleft of the square", size=(48, 64))
    write_item(folder, "Cat1", instruction="a red circle", size=None)
    return folder

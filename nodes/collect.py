"""Collect Dataset: pictures and words of the graph, as items to train on."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from PIL import Image

from ..mmp_core import InputError
from ..mmp_core.errors import sentence
from ..mmp_core.files import replacing, writing
from ..mmp_core.image.files import write_picture
from ..mmp_core.outside import checked_text
from ..training.data.items import SAME_RATIO
from .host import interruptible, stop_if_interrupted, times_gone, training_folders, wrote
from .pictures import said, to_pictures
from .types import Schema

_LONGEST_NAME = 40


class CollectDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelCollectDataset",
            display_name="Collect Dataset (MMaDA)",
            category="MMaDA-Parallel/training",
            description="Adds pictures and words from the graph to a dataset in the input "
            "folder, for Load Edit Dataset. What the dataset holds already is not "
            "added again.",
            search_aliases=["mmada", "save dataset", "training data", "pairs", "build dataset"],
            inputs=[
                io.String.Input(
                    "dataset",
                    default="my-edits",
                    tooltip="Name of a folder in ComfyUI's input folder, which is created if it "
                    "does not exist. Press R afterwards, so that Load Edit Dataset lists "
                    "it.",
                ),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    default="",
                    tooltip="What to change in image or, without an image, what target shows.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture to edit. A batch adds one item per picture. Leave "
                    "unconnected to teach pictures from words alone.",
                ),
                io.Image.Input(
                    "target",
                    optional=True,
                    tooltip="The wanted picture, for SFT: one per image, of the same shape. "
                    "ParaRL needs none.",
                ),
                io.String.Input(
                    "think",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="The reasoning that goes with the target, for SFT, such as the text "
                    "of Decode Text.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="dataset", tooltip="The dataset, as Load Edit Dataset lists it."
                ),
                io.Int.Output(
                    display_name="count", tooltip="The number of items that the dataset now holds."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return times_gone(cls.hidden.unique_id)

    @classmethod
    def validate_inputs(cls, instruction: str | None = None) -> bool | str:
        """Refuse an item without words when it is queued. None: it is linked."""
        if instruction is None or instruction.strip():
            return True
        return sentence("The instruction is empty: say what to change, or what the target shows.")

    @classmethod
    def execute(
        cls,
        dataset: str,
        instruction: str,
        image: torch.Tensor | None = None,
        target: torch.Tensor | None = None,
        think: str = "",
    ) -> io.NodeOutput:
        folder = training_folders.new_dataset(dataset)
        texts = {".txt": checked_text(instruction, "The instruction").strip()}
        texts[".think.txt"] = checked_text(think, "think").strip()
        if not texts[".txt"]:
            raise InputError(
                "The instruction is empty: say what to change, or what the target shows."
            )
        images, targets = (
            [picture.convert("RGB") for picture in to_pictures(batch)] or [None]
            for batch in (image, target)
        )
        count = max(len(images), len(targets))
        if {len(images), len(targets)} - {1, count}:
            raise InputError(
                f"There are {len(images)} images and {len(targets)} targets: connect as many "
                "targets as images."
            )
        added = 0
        for item in interruptible(range(count)):
            picture, wanted = images[item % len(images)], targets[item % len(targets)]
            if picture and wanted and not same_shape(picture.size, wanted.size):
                raise InputError(
                    f"image has {picture.width}x{picture.height} pixels and target "
                    f"{wanted.width}x{wanted.height}: they must have the same shape. Put Back "
                    "gives a result the shape of its original."
                )
            added += add_item(folder, texts, {".png": picture, ".target.png": wanted})
        held = sum(1 for file in folder.glob("*.txt") if not file.name.endswith(".think.txt"))
        wrote(cls.hidden.unique_id, folder)
        note = f"{added} of {count} added to input/{dataset}, which now holds {held}."
        return io.NodeOutput(dataset, held, ui=said([note], cls))


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether pictures of these sizes are read as a pair."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) <= SAME_RATIO


def add_item(folder: Path, texts: dict[str, str], pictures: dict[str, Image.Image | None]) -> bool:
    """Write an item's files, named by its words and content; whether it is new. Its instruction,
    which makes it an item, is written last."""
    content = hashlib.sha256(repr(texts).encode())
    for ending, picture in pictures.items():
        if picture is not None:
            content.update(f"{ending}{picture.size}".encode() + picture.tobytes())
    words = re.sub(r"\W+", "-", texts[".txt"].lower())[:_LONGEST_NAME].strip("-")
    name = f"{words or 'item'}-{content.hexdigest()[:8]}"
    if (folder / f"{name}.txt").exists():
        return False
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for ending, picture in pictures.items():
        if picture is not None:
            write_picture(folder / f"{name}{ending}", picture, tell=stop_if_interrupted)
    for ending, text in reversed(texts.items()):
        path = folder / f"{name}{ending}"
        if text:
            with writing(path), replacing(path) as file:
                file.write_text(text + "\n", encoding="utf-8")
    return True

"""Load Edit Dataset."""

from dataclasses import asdict, replace
from typing import Any

from comfy_api.v0_0_2 import io

from ..mmp_core.options import options_of
from ..training.data.dataset import BadItems, EditDataset, joined, open_dataset
from ..training.data.items import Item
from ..training.data.settings import DataSettings
from ..training.data.variations import varied
from ..views.examples import Example, dataset_sheet
from . import host
from .host import folders, training_folders
from .pictures import shown, to_pixels
from .types import Dataset, Schema
from .widgets import between, widget

_SHOWN = 8
_GENERATED_ITEMS = 256
_BAD_ITEMS: dict[str, BadItems] = {"skip": "skip", "stop": "fail"}


class LoadEditDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelLoadEditDataset",
            display_name="Load Edit Dataset (MMaDA)",
            category="MMaDA-Parallel/training",
            description="Pictures with instructions to finetune on, from a folder in the input "
            "folder: cat.png, with what to change in cat.txt.",
            search_aliases=["mmada", "load dataset", "training data", "finetune", "folder"],
            inputs=[
                io.Combo.Input(
                    "dataset",
                    options=[
                        *training_folders.generated_datasets(),
                        *training_folders.stored_datasets(),
                        *training_folders.unusable_datasets(),
                    ],
                    default="demo (toy world)",
                    tooltip="Put a folder of cat.png and cat.txt (the instruction) into ComfyUI's "
                    "input folder, for SFT also cat.think.txt (the reasoning) and cat.target.png "
                    "(the wanted picture), then press R. A cat.txt without cat.png asks for a new "
                    "picture. .jsonl manifests and saved Hugging Face datasets are listed, too.",
                ),
                io.Combo.Input(
                    "bad_items",
                    options=list(_BAD_ITEMS),
                    default="skip",
                    tooltip="What to do with items that cannot be used, such as a damaged picture "
                    "or an empty instruction. skip: leave them out and list them in the report. "
                    "stop: end with an error that names them.",
                ),
                io.Int.Input(
                    "limit",
                    **between(0, 1_000_000, default=0),
                    tooltip="Use only this many items, from the first. 0: all of them, or 256 of "
                    "the toy world, which is endless.",
                ),
                io.Int.Input(
                    "repeats",
                    **between(1, 1000, default=1),
                    optional=True,
                    advanced=True,
                    tooltip="How many times each item is used before any is used again, so that "
                    "a small dataset counts as much as a larger one next to it.",
                ),
                *(widget(o, optional=True) for o in options_of(DataSettings).values()),
                Dataset.Input(
                    "more",
                    optional=True,
                    tooltip="Another dataset whose items are used as well.",
                ),
            ],
            outputs=[
                Dataset.Output(
                    display_name="dataset", tooltip="For ParaRL Finetune and SFT Finetune."
                ),
                io.Image.Output(
                    display_name="preview",
                    tooltip=f"{_SHOWN} items, evenly spread: picture, target, instruction and, "
                    "fainter, reasoning.",
                ),
                io.Int.Output(
                    display_name="count", tooltip="The number of items that can be used."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What the dataset holds, and what was skipped and why.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # so that a dataset can be looked at before anything is trained
        )

    @classmethod
    def fingerprint_inputs(cls, dataset: str, **_):
        return folders.fingerprint(lambda: training_folders.dataset_files(dataset))

    @classmethod
    def execute(
        cls,
        dataset: str,
        bad_items: str,
        limit: int,
        repeats: int = 1,
        more: EditDataset | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        settings = DataSettings(**widgets)
        progress = host.Progress(cls.hidden.unique_id)

        def callback(done: int, total: int) -> None:
            host.stop_if_interrupted()
            progress.show(done, total)

        if dataset in (generated := training_folders.generated_datasets()):
            opened = generated[dataset].make(limit or _GENERATED_ITEMS, callback)
            said = {"data": (f"{generated[dataset].name}={repeats}",), **asdict(settings)}
            opened = replace(
                opened,
                items=tuple(varied(opened.items, settings, repeats, callback)),
                options={"cases": limit or _GENERATED_ITEMS, "bad_items": "skip", **said},
            )
        else:
            opened = open_dataset(
                training_folders.dataset_path(dataset),
                bad_items=_BAD_ITEMS[bad_items],
                limit=limit or None,
                settings=settings,
                repeats=repeats,
                callback=callback,
            )
        opened = joined([opened, more] if more else [opened], callback)
        count = min(_SHOWN, len(opened))
        spread = [opened[i * len(opened) // count] for i in range(count)]
        pixels, report = (
            to_pixels([dataset_sheet(list(map(_example, host.interruptible(spread))))]),
            opened.report(callback),
        )
        image = host.to_intermediate(pixels)
        ui = shown(pixels, report, cls)
        return io.NodeOutput(opened, image, len(opened), report, ui=ui)


def _example(item: Item) -> Example:
    image, target = (picture and picture.read() for picture in (item.image, item.target))
    return Example(item.name, item.instruction, item.think, image, target)

"""The work that ``interrupts.py`` measures: each piece at the largest size that the pack's own
limits allow, or at the largest that two cores and 20 GB take in minutes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmada_parallel.benchmarks.convert import write_source
from mmada_parallel.mmp_core import TokenState, Trajectory
from mmada_parallel.mmp_core.image.files import load_image, write_picture
from mmada_parallel.mmp_core.state import Step
from mmada_parallel.tests.hosts import find_host
from PIL import Image

Work = Callable[[], object]
SAMPLES, TEXT, SIDE = 1024, 4096, 4096
SETTINGS = {
    **dict.fromkeys(("text_steps", "image_steps"), 0),
    **dict.fromkeys([f"{n}_guidance" for n in ("joint", "text", "image", "reasoning")], -1.0),
    "batch_size": 1,
    "seed": 0,
    "preset": "corrected",
    "preview_every": 1,
    "order": "parallel",
    "text_temperature": 0.0,
    "image_temperature": 1.0,
    "remasking": "low_confidence",
    "record_steps": 4096,
    "speed": "exact",
    "block_length": -1,
}
WORKS: dict[str, tuple[str, Callable[[Place], Work]]] = {}


def import_host() -> None:
    sys.path.insert(0, str(find_host("current").path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import mmada_parallel.nodes  # noqa: F401
    import transformers  # noqa: F401


class Place:
    """ComfyUI's modules, whose folders are all in ``folder``, and the nodes of the pack."""

    def __init__(self, folder: Path):
        import folder_paths
        import mmada_parallel.nodes as nodes

        for name in ("input", "output", "temp", "models"):
            (folder / name).mkdir()
        for name in ("input", "output", "temp"):
            getattr(folder_paths, f"set_{name}_directory")(str(folder / name))
        folder_paths.add_model_folder_path("mmada_parallel", str(folder / "models"))
        self.folder, self.nodes, self.host = folder, nodes, nodes.load.host
        listed = asyncio.run(nodes.MMaDAParallelExtension().get_node_list())
        self._classes = {node.define_schema().node_id: node for node in listed}

    def node(self, name: str, /, **inputs: Any) -> Any:
        node = self._classes[f"MMaDAParallel{name}"].PREPARE_CLASS_CLONE(None)
        with torch.inference_mode():
            return node.execute(**inputs)

    @cached_property
    def model(self) -> Any:
        return self.host.load("demo", "auto", "auto")

    def prompt(self, **inputs: Any) -> Any:
        given = {"instruction": "remove the red star", "width": 0, "height": 0, "text_length": 0}
        return self.node("EncodeInstruction", model=self.model, **(given | inputs))[0]

    def tokens(self, count: int = SAMPLES, text: int = 21, side: int = 128) -> TokenState:
        layout, grid = self.model.model.layout, side // self.model.model.downsample
        words = torch.randint(1, layout.mask_id, (count, text))
        return TokenState(words, torch.randint(0, layout.codebook_size, (count, grid, grid)))

    def trajectory(self, steps: int, count: int) -> Trajectory:
        states = [self.tokens(count) for _ in range(steps)]
        recorded = [replace(Step.before(state), index=n) for n, state in enumerate(states)]
        return Trajectory(tuple(recorded), states[0], states[-1], steps)


def noise(side: int, count: int = 1) -> torch.Tensor:
    return torch.rand(count, side, side, 3)


def picture(width: int, height: int) -> Image.Image:
    """A gradient with some noise, as of a photograph."""
    rows = np.linspace(0, 200, height, dtype=np.float32)[:, None, None]
    levels = np.random.default_rng(0).integers(0, 24, (height, width, 3), np.uint8)
    return Image.fromarray(levels + rows.astype(np.uint8))


def work(size: str) -> Callable[[Callable[[Place], Work]], Callable[[Place], Work]]:
    def kept(prepare: Callable[[Place], Work]) -> Callable[[Place], Work]:
        WORKS[prepare.__name__.replace("_", " ")] = size, prepare
        return prepare

    return kept


# checkpoints


def _source(place: Place, layers: int) -> Path:
    folder = place.folder / "models" / "large"
    folder.mkdir()
    write_source(folder, layers)
    return folder


@work("released widths, 2 layers, 3.1 GB of bf16, to fp32")
def load_checkpoint(place: Place) -> Work:
    _source(place, 2)
    return lambda: place.host.load("large", "fp32", "auto")


@work("released widths, 2 layers, 3.1 GB, to int8")
def convert_checkpoint(place: Place) -> Work:
    _source(place, 2)
    names = {"checkpoint": "large", "quantize": "int8", "name": "small", "lora": "none"}
    return lambda: place.node("ConvertCheckpoint", **names, strength=1.0, image_tokenizer="auto")


@work("released widths, 2 layers: 1 sample of 256x256 pixels and 64 words, 1 step")
def denoise_released_widths(place: Place) -> Work:
    _source(place, 2)
    model = place.host.load("large", "auto", "auto")
    prompt = place.node(
        "EncodeInstruction", model=model, instruction="remove the red star", width=256, height=256,
        text_length=64,
    )[0]  # fmt: skip
    settings = SETTINGS | {"text_steps": 1, "image_steps": 1, "preview_every": 0}
    return lambda: place.node("Denoise", model=model, prompt=prompt, **settings)


# pictures and tokens


@work("8 pictures of 4096x4096 pixels")
def encode_instruction(place: Place) -> Work:
    batch = noise(SIDE, 8)
    return lambda: place.prompt(image=batch)


@work("4 pictures and masks of 4096x4096 pixels, around the mask")
def encode_with_masks(place: Place) -> Work:
    batch, mask = noise(SIDE, 4), torch.zeros(4, SIDE, SIDE)
    mask[:, 100:900, 100:900] = 1
    return lambda: place.prompt(image=batch, mask=mask, region="mask")


@work("an instruction of 20,000 characters")
def long_instruction(place: Place) -> Work:
    def encode() -> None:
        try:
            place.prompt(instruction="remove the red star " * 1000)
        except ValueError as refused:
            print(refused, file=sys.stderr)

    return encode


@work("16 samples of the demo, its own steps, all recorded")
def denoise_a_batch(place: Place) -> Work:
    prompt = place.prompt(image=noise(128))
    settings = SETTINGS | {"batch_size": 16}
    return lambda: place.node("Denoise", model=place.model, prompt=prompt, **settings)


@work("the demo: 1024x1024 pixels and 1024 words, 2 steps")
def denoise_long(place: Place) -> Work:
    prompt = place.prompt(width=1024, height=1024, text_length=1024)
    settings = SETTINGS | {"text_steps": 2, "image_steps": 2}
    return lambda: place.node("Denoise", model=place.model, prompt=prompt, **settings)


@work("128 samples of 128x128 pixels")
def decode_a_batch(place: Place) -> Work:
    tokens = place.tokens(128)
    return lambda: place.node("DecodeImage", model=place.model, tokens=tokens, fill="grey")


@work("1 sample of 2048x2048 pixels, the demo's image tokenizer")
def decode_large(place: Place) -> Work:
    tokens = place.tokens(1, side=2048)
    return lambda: place.node("DecodeImage", model=place.model, tokens=tokens, fill="grey")


@work("1024 samples of 4096 tokens")
def decode_texts(place: Place) -> Work:
    tokens = place.tokens(text=TEXT)
    return lambda: place.node("DecodeText", model=place.model, tokens=tokens)


@work("1024 samples of 4096 tokens, the words 5- and a pattern")
def select_words(place: Place) -> Work:
    tokens, chosen = place.tokens(text=TEXT), {"text": "reopen selected", "words": "5-"}
    inputs = {**chosen, "picture": "keep all", "pattern": "red|blue|.", "coverage": 0.0}
    return lambda: place.node("Remask", model=place.model, tokens=tokens, **inputs)


@work("64 samples, masks of 4096x4096 pixels, grown")
def select_by_masks(place: Place) -> Work:
    tokens, mask = place.tokens(64), torch.rand(64, SIDE, SIDE)
    inputs = {"text": "keep all", "words": "", "pattern": "", "picture": "reopen masked"}
    chosen = {**inputs, "coverage": 0.5, "grow": 4, "mask": mask}
    return lambda: place.node("Remask", model=place.model, tokens=tokens, **chosen)


@work("128 samples")
def vary_a_batch(place: Place) -> Work:
    tokens, prompt = place.tokens(128), place.prompt(image=noise(128))
    given = {"prompt": prompt, "tokens": tokens, "picture": 0.5, "text": 0.5}
    return lambda: place.node("Vary", model=place.model, **given)


@work("1024 samples of 4096 tokens, 128x128 pixels")
def save_and_load_tokens(place: Place) -> Work:
    tokens = place.tokens(text=TEXT, side=256)

    def both() -> None:
        saved = place.node("SaveTokens", model=place.model, tokens=tokens, filename_prefix="t")
        place.node("LoadTokens", model=place.model, file=f"{saved.ui['text'][0]} [output]")

    return both


@work("1 result of 1024x1024 pixels on an original of 4096x4096, grown and feathered by 256")
def put_back(place: Place) -> Work:
    original, result = noise(SIDE), noise(1024)
    given = {"prompt": place.prompt(image=original, width=1024, height=1024), "mode": "changed"}
    inputs = {"fill": "auto", "feather": 256, "grow": 256, "threshold": 0.02, "result": result}
    return lambda: place.node("PutBack", model=place.model, original=original, **given, **inputs)


@work("237 frames of 1024x1024 pixels, the most that the node takes")
def trajectory_sheet(place: Place) -> Work:
    run = place.trajectory(237, 1)
    shape = {"steps": 4096, "columns": 16, "confidence": True, "side": 1024, "sample": 0}
    return lambda: place.node("TrajectorySheet", model=place.model, trajectory=run, **shape)


@work("128 samples")
def score_a_batch(place: Place) -> Work:
    tokens = place.tokens(128)
    return lambda: place.node("ScoreAlignment", model=place.model, tokens=tokens, clip="demo")


@work("16 samples at 16 steps")
def score_a_run(place: Place) -> Work:
    run = place.trajectory(16, 16)
    return lambda: place.node("ScoreAlignment", model=place.model, trajectory=run, clip="demo")


@work("32 pictures of 1024x1024 pixels and a text of 20,000 characters")
def score_pictures(place: Place) -> Work:
    batch, text = noise(1024, 32), "remove the red star " * 1000
    return lambda: place.node("ScoreAlignment", image=batch, text=text, clip="demo")


@work("2 pairs of pictures of 4096x4096 pixels")
def collect_dataset(place: Place) -> Work:
    batch = noise(SIDE, 2)
    given = {"dataset": "d", "instruction": "make it red", "image": batch, "target": batch}
    return lambda: place.node("CollectDataset", **given)


@work("1024 samples of 4096 tokens")
def keep_a_pick(place: Place) -> Work:
    prompt, tokens = place.prompt(text_length=TEXT), place.tokens(text=TEXT)
    given = {"tokens": tokens, "index": 0, "preferences": "p", "model": place.model}

    def twice() -> None:
        for _ in range(2):
            place.node("PickSample", prompt=prompt, **given)

    return twice


# pictures on disk, as the command reads and writes them: Ctrl-C alone


def _on_disk(place: Place, ending: str, width: int, height: int) -> Work:
    file = place.folder / f"large{ending}"
    write_picture(file, picture(width, height))
    return partial(load_image, file)


_SIZES = {".png": (16_000, 11_062), ".jpg": (16_000, 11_062), ".webp": (SIDE, SIDE)}
for ending, (width, height) in _SIZES.items():
    size = f"{ending}, {width}x{height} pixels"
    prepare = partial(_on_disk, ending=ending, width=width, height=height)
    WORKS[f"read a picture {ending}"] = size, prepare


@work(".png, 177 million pixels")
def write_a_picture(place: Place) -> Work:
    large = picture(16_000, 11_062)
    return lambda: write_picture(place.folder / "large.png", large)

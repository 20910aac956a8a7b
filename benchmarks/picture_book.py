"""Contact sheets of the picture book, and how well its judge reads.

``python -m mmada_parallel.benchmarks.picture_book sheet OUT.png [--seed N]`` draws tasks, before
and after, with their words. ``… judge --scenes N`` prints how many scenes are read right as drawn,
with noise, blurred, as JPEG, with shifted colours, at half the size; and how many are refused that
have one patch of another thing. ``--tokenizer FOLDER`` (one with a vqvae folder) draws the tasks as
its image tokenizer gives them, or reads scenes through it, too.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..demo.picture_book import judge
from ..demo.picture_book.scenes import (
    BOX,
    CONTENTS,
    GROUNDS,
    PATCH,
    TIMES,
    TOPS,
    Scene,
    thing_codes,
)
from ..demo.picture_book.tasks import Task, random_scene, task

Spoil = Callable[[Image.Image], Image.Image]
_SIDE, _TEXT = 256, 96


def sheet(seed: int, rows: int, through: Spoil) -> Image.Image:
    """One task of each kind, and more: input and result side by side, words below."""
    kinds = Task.kinds()
    picture = Image.new("RGB", (2 * (2 * _SIDE + 24), rows * (_SIDE + _TEXT)), "white")
    for number in range(2 * rows):
        made = task(seed + number, kinds=(kinds[number % len(kinds)],))
        left = number % 2 * (2 * _SIDE + 24)
        top = number // 2 * (_SIDE + _TEXT)
        for column, scene in enumerate((made.before, made.after)):
            if scene is not None:
                picture.paste(through(scene.picture()), (left + column * (_SIDE + 4), top))
        words = [f"“{made.instruction}”", *textwrap.wrap(spoken(made.sentence), 74)]
        place = (left + 4, top + _SIDE + 6)
        ImageDraw.Draw(picture).text(place, "\n".join(words), "black", ImageFont.load_default(14))
    return picture


def spoken(sentence: str) -> str:
    """As the checkpoint's tokenizer writes it."""
    return sentence.replace(" .", ".").replace(" ,", ",")


def spoils(rng: np.random.Generator) -> dict[str, Spoil]:
    def noisy(picture: Image.Image, levels: float) -> Image.Image:
        return _image(np.asarray(picture) + rng.normal(0, levels, (_SIDE, _SIDE, 3)))

    def jpeg(picture: Image.Image, quality: int) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return {
        "as drawn": lambda picture: picture,
        "noise of 12 levels": lambda picture: noisy(picture, 12),
        "noise of 25 levels": lambda picture: noisy(picture, 25),
        "blurred by 1.5 pixels": lambda picture: picture.filter(ImageFilter.GaussianBlur(1.5)),
        "JPEG of quality 20": lambda picture: jpeg(picture, 20),
        "colours shifted by up to 10 levels": lambda picture: _image(
            np.asarray(picture) + rng.uniform(-10, 10, 3)
        ),
        "half the size": lambda picture: picture.resize((128, 128), Image.Resampling.LANCZOS),
    }


def round_trip(folder: Path) -> Spoil:
    from safetensors.torch import load_file

    from ..mmp_core.image.amused import AmusedVQ
    from ..mmp_core.image.pictures import to_pil, to_pixels

    place = folder / "vqvae"
    tokenizer = AmusedVQ(json.loads((place / "config.json").read_text()))
    tokenizer.load_state_dict(load_file(place / "diffusion_pytorch_model.safetensors"))

    def decoded(picture: Image.Image) -> Image.Image:
        codes = tokenizer.encode(to_pixels(picture, tokenizer.pixel_range))
        return to_pil(tokenizer.decode(codes), tokenizer.pixel_range)[0]

    return decoded


def spliced(rng: random.Random, scene: Scene) -> Image.Image | None:
    """The scene with one patch of another thing; ``None`` where the two hardly differ there."""
    slot, thing = rng.choice(sorted(scene.placed().items(), key=str))
    other = rng.choice([each for each in CONTENTS[slot.layer] if each != thing])
    shared = np.argwhere((thing_codes(thing) >= 0) & (thing_codes(other) >= 0))
    pixels, others = (
        np.asarray(each.picture()).copy() for each in (scene, scene.having({slot: other}))
    )
    row, column = rng.choice(shared.tolist())
    top, left = (TOPS[slot.layer] + row) * PATCH, (slot.column * BOX[1] + column) * PATCH
    part = np.s_[top : top + PATCH, left : left + PATCH]
    gap = np.sqrt(((pixels[part].astype(float) - others[part]) ** 2).mean())
    pixels[part] = others[part]
    return Image.fromarray(pixels) if gap > 10 else None


def measured(scenes: int, seed: int, more: dict[str, Spoil], landscapes: int) -> dict[str, float]:
    """Shares of ``scenes``, in the first ``landscapes`` landscapes."""
    rng, right, refused, splices = random.Random(seed), Counter[str](), 0, 0
    kinds = spoils(np.random.default_rng(seed)) | more
    known = [(time, ground) for time in TIMES for ground in GROUNDS][:landscapes]
    for number in range(scenes):
        scene = random_scene(rng)
        time, ground = known[number % len(known)]
        scene = Scene(time, ground, scene.things)
        for name, spoil in kinds.items():
            right[name] += judge.read(spoil(scene.picture())).scene == scene
        if (wrong := spliced(rng, scene)) is not None:
            refused += judge.read(wrong).scene is None
            splices += 1
    shares = {name: right[name] / scenes for name in kinds}
    return shares | {"one patch of another thing is refused": refused / splices}


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    drawn = commands.add_parser("sheet")
    drawn.add_argument("out", type=Path)
    drawn.add_argument("--rows", type=int, default=5, help="with two tasks each")
    read = commands.add_parser("judge")
    read.add_argument("--scenes", type=int, default=200)
    read.add_argument("--landscapes", type=int, default=12)
    for command in (drawn, read):
        command.add_argument("--tokenizer", type=Path)
        command.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trip = round_trip(args.tokenizer) if args.tokenizer else None
    if args.command == "sheet":
        sheet(args.seed, args.rows, trip or Image.Image.copy).save(args.out, optimize=True)
        return
    more = {"through the image tokenizer": trip} if trip else {}
    print(json.dumps(measured(args.scenes, args.seed, more, args.landscapes), indent=1))


if __name__ == "__main__":
    main()

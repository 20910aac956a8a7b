"""Put back on real photographs: known edits at full resolution, through a lossy image tokenizer.

``python -m mmada_parallel.benchmarks.put_back PHOTO… [--out FILE.json] [--only PART…]``

For each photograph and kind of edit, the truth is the edit at full resolution, within what the
model sees; the model's result is the truth brought to the model's size, a seventh of the
photograph's, and through a codebook of 16-pixel patches, trained on the other half of the
photographs. Families A (crops) and M (squashes) take turns; every third photograph is cropped to
3:4. Defaults were chosen on the photographs at even places ("tuned on"); the figures of the others
("held out") are reported apart.

Parts: ``edits`` (a row for each case; those in FILE are not done again), ``toy`` (scenes of the toy
world inside large pictures, edited by the demo checkpoint through a mask) and ``speed`` (24
megapixels; needs a quiet machine). FILE is written after each row, and keeps the other parts.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from mmada_parallel.benchmarks.patch_tokenizer import SIDE, PatchTokenizer, trained
from mmada_parallel.benchmarks.photo_edits import KINDS, Edit, edits_of
from mmada_parallel.demo.checker import check
from mmada_parallel.demo.evaluate import held_out
from mmada_parallel.demo.render import render
from mmada_parallel.mmp_core import (
    Model,
    Prompt,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
    put_back,
)
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.mmp_core.image.files import load_image
from mmada_parallel.mmp_core.image.pictures import fit_image
from mmada_parallel.mmp_core.image.placement import Placement
from mmada_parallel.mmp_core.image.put_back_settings import Mode, PutBackSettings
from mmada_parallel.mmp_core.pipeline import encode_seen
from mmada_parallel.mmp_core.variants.base import Variant
from mmada_parallel.mmp_core.variants.registry import VARIANTS
from PIL import Image

FACTOR = 7
"""The original's side in sides of the model's picture."""
MOST_PIXELS = 2560 * 1920
FILLS = ("auto", "replace", "difference")
HALVES = ("tuned on", "held out")
PARTS = ("edits", "toy", "speed")
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """``photo``: the original. ``result``: the model's tokens. ``edit``: within what it sees."""

    edit: Edit
    photo: Image.Image
    model: Model
    prompt: Prompt
    result: TokenState

    @property
    def placement(self) -> Placement:
        assert self.prompt.placement
        return self.prompt.placement[0]


def tokenizers(photos: Sequence[Image.Image]) -> tuple[PatchTokenizer, PatchTokenizer]:
    """For photographs at even and at odd places: each the codebook of the other half."""
    odd, even = (
        trained([_shrunk(p, f) for p in photos[half::2] for f in (5, 7, 10)]) for half in (1, 0)
    )
    return odd, even


def cases(
    photos: Sequence[Image.Image],
    number: int,
    books: Sequence[PatchTokenizer],
    kinds: Collection[str],
    seed: int,
) -> Iterator[Case]:
    """Edits of the photograph at place ``number``; what is pasted comes from another one."""
    photo, other = photos[number], np.asarray(photos[(number + 5) % len(photos)])
    variant = VARIANTS[number // 2 % 2]
    side = max(4, round((photo.width * photo.height) ** 0.5 / FACTOR / SIDE)) * SIDE
    for edit in edits_of(np.asarray(photo), other, seed + number, kinds):
        yield _case(edit, photo, books[number % 2], variant, side)


def _case(
    edit: Edit, photo: Image.Image, tokenizer: PatchTokenizer, variant: Variant, side: int
) -> Case:
    model = cast(
        Model,
        SimpleNamespace(
            image_tokenizer=tokenizer, variant=variant, device=torch.device("cpu"), downsample=SIDE
        ),
    )
    size = variant.input_size(photo.size, side, SIDE)
    placement = variant.placement(photo.size, size)
    left, top, right, bottom = (round(edge) for edge in placement.box)
    truth, seen = np.asarray(photo).copy(), (slice(top, bottom), slice(left, right))
    truth[seen] = edit.truth[seen]
    edit = Edit(edit.kind, truth, (truth != np.asarray(photo)).any(2))
    pictures = [variant.fit(picture, size) for picture in (photo, Image.fromarray(truth))]
    before, after = encode_seen(model, pictures).split(1)
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    prompt = Prompt(nothing, nothing, before, TokenState(nothing, before, (placement,)))
    return Case(edit, photo, model, prompt, TokenState(nothing, after, (placement,)))


def measured(case: Case) -> dict[str, float]:
    """PSNR in dB and SSIM of the whole picture against the truth, by how it was made; recall and
    precision of the mask; whether all else is untouched; the tokenizer's own PSNR.

    ``bound``: dB above the enlarged result if its mask were perfect and its error evenly spread.
    ``true mask``: filled by replace within the true change, to the pixel.
    """
    truth, original, changed = case.edit.truth, np.asarray(case.photo), case.edit.changed
    share = changed.mean()
    values: dict[str, float] = {"changed": share, "bound": -10 * np.log10(share)}
    pictures, used = {}, np.zeros(truth.shape[:2], np.uint8)
    for fill in FILLS:
        pictures[fill], used = _put_back(case, PutBackSettings(fill=fill))
        same = (pictures[fill][used == 0] == original[used == 0]).all()
        values["untouched"] = min(values.get("untouched", 1.0), float(same))
    result = decode_image(case.model, case.result)[0]
    pictures["enlarged"] = np.asarray(result.resize(case.photo.size, Image.Resampling.BICUBIC))
    left, top, right, bottom = case.placement.box
    pasted, size = case.photo.copy(), (round(right - left), round(bottom - top))
    corner = (case.photo.width - size[0]) // 2, (case.photo.height - size[1]) // 2
    pasted.paste(result.resize(size, Image.Resampling.BICUBIC), corner)
    pictures["centre paste"] = np.asarray(pasted)
    hard = PutBackSettings(fill="replace", feather=0)
    mask = Image.fromarray(changed)
    whole = _put_back(case, hard, mode="all")[0]
    pictures["true mask"] = np.where(np.asarray(mask)[..., None], whole, original)
    for name, picture in pictures.items():
        values[f"psnr {name}"] = psnr(picture, truth)
        if name not in FILLS[1:]:
            values[f"ssim {name}"] = ssim(picture, truth)
    found = used >= 128
    if case.edit.kind != "relight":
        both = np.logical_and(found, changed).sum()
        values["recall"] = both / changed.sum()
        values["precision"] = both / max(1, found.sum())
        values["recall of any"] = np.logical_and(changed, used > 0).sum() / changed.sum()
    seen = np.asarray(case.model.variant.fit(Image.fromarray(truth), case.placement.size))
    values["psnr tokenizer"] = psnr(np.asarray(result), seen)
    return {name: round(float(value), 4) for name, value in values.items()}


def _put_back(
    case: Case, settings: PutBackSettings, mode: Mode = "changed"
) -> tuple[np.ndarray, np.ndarray]:
    one = put_back(case.model, case.prompt, case.photo, case.result, mode=mode, settings=settings)
    return np.asarray(one[0]), np.asarray(one[1])


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.square(one.astype(np.float32) - other).mean() / 255**2
    return -10 * np.log10(max(float(error), 1e-10))


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Of brightness, with the usual constants and windows of 7x7 pixels."""
    weights = np.array([0.299, 0.587, 0.114], np.float32) / 255
    x, y = (torch.from_numpy(picture @ weights)[None, None] for picture in (one, other))

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.avg_pool2d(values, (1, 7), 1), (7, 1), 1)

    a, b = mean(x), mean(y)
    va, vb, ab = mean(x * x) - a * a, mean(y * y) - b * b, mean(x * y) - a * b
    c, d = 0.01**2, 0.03**2
    return float(((2 * a * b + c) * (2 * ab + d) / ((a * a + b * b + c) * (va + vb + d))).mean())


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the cases of one kind of edit, and for the mask medians, too."""
    names = [n for n, value in rows[0].items() if isinstance(value, float)]
    means = {name: round(float(np.mean([r[name] for r in rows])), 3) for name in names}
    for name in ("recall", "precision"):
        if name in names:
            means[f"{name}, median"] = round(float(np.median([r[name] for r in rows])), 3)
    for name in (*FILLS, "true mask"):
        means[f"dB gained, {name}"] = round(float(np.mean([gain(r, name) for r in rows])), 2)
    return {"cases": len(rows), **means}


def gain(row: Row, name: str = "auto") -> float:
    """dB above the better of the enlarged result and the one pasted at the centre."""
    return row[f"psnr {name}"] - max(row["psnr enlarged"], row["psnr centre paste"])


def summaries(rows: Sequence[Row]) -> dict[str, Any]:
    """By which photographs and kind of edit. ``in life``: those held out of which a seventh is at
    least ten image tokens on each side, so that an edit is larger than a token."""
    groups = {"all": list(rows)}
    groups |= {half: [row for row in rows if row["photographs"] == half] for half in HALVES}
    groups["held out, in life"] = [
        row
        for row in groups[HALVES[1]]
        if min(map(int, row["model's size"].split("x"))) >= 10 * SIDE
    ]
    tables: dict[str, Any] = {}
    for name, those in groups.items():
        kinds = {row["kind"]: [r for r in those if r["kind"] == row["kind"]] for row in those}
        tables[name] = {kind: summary(values) for kind, values in kinds.items()}
        masked = [row for row in those if "recall" in row]
        if masked:
            tables[name]["all but relight"] = summary(masked)
    return tables


def speed(photo: Image.Image, runs: int) -> dict[str, Any]:
    """``put_back`` of 24 megapixels at the model's real size, a part and all of it changed."""
    large = photo.resize((6000, 4000), Image.Resampling.BICUBIC)
    noisy = np.asarray(large)[::-1]
    edit = Edit("speed", noisy, np.ones(noisy.shape[:2], bool))
    case = _case(edit, large, trained([photo.resize((608, 400))], patches=4096), VARIANTS[0], 512)
    part = case.prompt.initial.image.clone()
    part[:, 6:18, 8:26] = case.result.image[:, 6:18, 8:26]
    peak = _peak()
    seconds: dict[str, float] = {}
    for name, codes in (("a fifth changed", part), ("all changed", case.result.image)):
        result = TokenState(case.result.text, codes, case.result.placement)
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            put_back(case.model, case.prompt, large, result)
            times.append(time.perf_counter() - began)
        seconds[name] = round(min(times), 2)
    return {
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "GB before": peak,
        "GB": _peak(),
    }


def _peak() -> float:
    """GB that the process has held at most."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def toy_world(
    photos: Sequence[Image.Image], count: int, rows: Path | None = None
) -> dict[str, Any]:
    """Scenes pasted into photographs, edited through a mask, put back, and read again."""
    model = load_checkpoint("demo", dtype=torch.float32)
    tasks = [task for task in held_out(2 * count) if task.before][:count]
    verdicts = {"model's own picture": [], "put back": []}
    untouched = []
    for number, task in enumerate(tasks):
        large = photos[number % len(photos)].resize((1600, 1200), Image.Resampling.BICUBIC)
        scene = render(task.source)
        scene = scene.resize((scene.width * 5, scene.height * 5), Image.Resampling.LANCZOS)
        left, top = 37 + 53 * number % 800, 23 + 31 * number % 480
        large.paste(scene, (left, top))
        box = (left, top, left + scene.width, top + scene.height)
        painted = Image.new("L", large.size)
        painted.paste(255, box)
        prompt = encode_instruction(model, task.instruction, large, mask=painted, region=box)
        final = denoise(model, prompt, SamplerSettings(seed=number), record=0).final
        picture, mask = put_back(model, prompt, large, final, mask=painted)
        used = np.asarray(mask)
        untouched.append((np.asarray(picture)[used == 0] == np.asarray(large)[used == 0]).all())
        if rows:
            whole = decode_image(model, final)[0]
            shown(large, whole, picture, mask, 300).save(rows / f"{number} {task.instruction}.png")
        sentence = decode_text(model, final)[0]
        again = picture.crop(box).resize(decode_image(model, final)[0].size, Image.Resampling.BOX)
        for name, image in (
            ("model's own picture", decode_image(model, final)[0]),
            ("put back", again),
        ):
            verdict = check(task, image, sentence)
            verdicts[name].append((verdict.picture, verdict.agree, verdict.kept))
    means = {
        name: dict(
            zip(("picture", "agree", "kept"), np.mean(rows, 0).round(3).tolist(), strict=True)
        )
        for name, rows in verdicts.items()
    }
    return {"tasks": len(tasks), **means, "untouched": float(np.mean(untouched))}


def shown(
    original: Image.Image, result: Image.Image, picture: Image.Image, mask: Image.Image, side: int
) -> Image.Image:
    """Side by side: the original, the model's picture, put back, and what was replaced."""
    row = Image.new("RGB", (4 * side, side * original.height // original.width), "white")
    for number, image in enumerate((original, result, picture, mask.convert("RGB"))):
        fitted = image.copy()
        fitted.thumbnail((side, row.height), Image.Resampling.LANCZOS)
        if fitted.width < side and fitted.height < row.height:
            fitted = image.resize((row.height, row.height), Image.Resampling.BICUBIC)
        row.paste(fitted, (number * side + (side - fitted.width) // 2, 0))
    return row


def _shrunk(photo: Image.Image, factor: float) -> Image.Image:
    size = [max(2, round(side / factor / SIDE)) * SIDE for side in photo.size]
    return photo.resize((size[0], size[1]), Image.Resampling.BOX)


def _photo(path: Path, number: int) -> Image.Image:
    """Every third is cropped to a portrait about its centre."""
    photo = load_image(path)
    scale = (MOST_PIXELS / (photo.width * photo.height)) ** 0.5
    if scale < 1:
        size = round(photo.width * scale), round(photo.height * scale)
        photo = photo.resize(size, Image.Resampling.LANCZOS)
    return fit_image(photo, [(3 * photo.height // 4, photo.height)]) if number % 3 == 2 else photo


def edited(paths: Sequence[Path], seed: int, results: dict[str, Any], out: Path | None) -> None:
    """Adds the row of each case to ``results``, and to the file, as soon as it is there."""
    photos = [_photo(path, number) for number, path in enumerate(paths)]
    books = tokenizers(photos)
    rows = results.setdefault("cases", [])
    for number, path in enumerate(paths):
        there = {row["kind"] for row in rows if row["photo"] == path.name}
        for case in cases(photos, number, books, KINDS.keys() - there, seed):
            row = {"photo": path.name, "kind": case.edit.kind, "photographs": HALVES[number % 2]}
            row |= {"size": "x".join(map(str, case.photo.size))}
            row |= {"model's size": "x".join(map(str, case.placement.size))}
            rows.append({**row, "family": case.model.variant.id, **measured(case)})
            results["edits"] = summaries(rows)
            _write(results, out)


def _write(results: dict[str, Any], out: Path | None) -> None:
    """With each case on one line."""
    if out is None:
        return
    rows = ",\n".join("  " + json.dumps(row) for row in results.get("cases", []))
    parts = {name: value for name, value in results.items() if name != "cases"}
    text = json.dumps({**parts, "cases": []}, indent=1)
    with replacing(out) as path:
        path.write_text(text.replace('"cases": []', f'"cases": [\n{rows}\n ]') + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=60, help="of the toy world")
    parser.add_argument("--runs", type=int, default=3, help="of the timing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=Path, help="a folder for pictures of the toy world")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    there = args.out and args.out.exists()
    results: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if there else {}
    if "speed" in args.only:
        results["24 megapixels"] = speed(load_image(args.photos[0]), args.runs)
        _write(results, args.out)
    if "toy" in args.only:
        photos = [load_image(path) for path in args.photos]
        results["toy world"] = toy_world(photos, args.tasks, args.rows)
        _write(results, args.out)
    if "edits" in args.only:
        edited(args.photos, args.seed, results, args.out)
        results["edits"] = summaries(results["cases"])
        _write(results, args.out)
    print(json.dumps({name: part for name, part in results.items() if name != "cases"}, indent=1))


if __name__ == "__main__":
    main()

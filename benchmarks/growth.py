"""How the memory of an edit grows with picture, text and batch, against the estimate.

``python -m mmada_parallel.benchmarks.growth FILE [--plot]`` counts, on a CPU, the bytes of all
tensors that are alive at once in an edit of two steps (guidance 3.5) by a narrow model of the
released vocabulary with random weights, and computes what ``denoising_estimate`` says for it. It
writes FILE after each point and continues from it. What an attention kernel holds inside itself is
not counted. ``--plot`` draws FILE (needs matplotlib).
"""

from __future__ import annotations

import json
import platform
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.benchmarks.shapes import TINY, RandomModel
from mmada_parallel.mmp_core import SamplerSettings, denoise
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.mmp_core.memory import denoising_estimate
from mmada_parallel.tests.live_bytes import most_bytes


class Point(NamedTuple):
    """``side``: of input and result, in pixels. ``text``: tokens of the text."""

    side: int = 512
    text: int = 256
    batch: int = 1


AXES = {
    "side": [Point(side=side) for side in (256, 512, 1024, 1536, 2048)],
    "text": [Point(text=text) for text in (64, 256, 512, 1024)],
    "batch": [Point(batch=batch) for batch in (1, 2, 4, 8, 16)],
}


def count(model: RandomModel, point: Point, speed: str) -> dict[str, float]:
    """Tokens of the sequence, and GB counted and estimated."""
    settings = SamplerSettings(text_steps=2, image_steps=2, speed=speed)
    prompt = model.prompt(point.side // 16, point.text, point.batch)
    tokens = model.layout.model_input(prompt, prompt.initial).ids.shape[1]
    counted = most_bytes(lambda: denoise(model, prompt, settings, record=0))
    estimate = denoising_estimate(model, prompt, settings, record=0).total(point.batch)
    return {"tokens": tokens, "counted_gb": counted / 1e9, "estimated_gb": estimate / 1e9}


def run(model: RandomModel, axes: dict[str, list[Point]], file: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"points": {}}
    if file.exists():
        results = json.loads(file.read_text(encoding="utf-8"))
    for speed, chosen in (("exact", axes), ("cached", {"side": axes["side"]})):
        for axis, points in chosen.items():
            for point in points:
                name = f"{speed}, {axis} {getattr(point, axis)}"
                if name in results["points"]:
                    continue
                results["points"][name] = point._asdict() | count(model, point, speed)
                results |= {
                    "command": "python -m mmada_parallel.benchmarks.growth FILE",
                    "machine": f"{platform.machine()}, CPU, torch {torch.__version__}; counted, "
                    "so that other work on the machine does not matter",
                    "date": date.today().isoformat(),
                }
                with replacing(file) as whole:
                    whole.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def plot(results: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    labels = {"side": "tokens, 256² to 2048² pixels", "text": "tokens of text", "batch": "batch"}
    for axes, (axis, label) in zip(figure.subplots(1, 3), labels.items(), strict=True):
        for colour, speed in enumerate(("exact", "cached") if axis == "side" else ("exact",)):
            names = (n for n in results["points"] if n.startswith(f"{speed}, {axis} "))
            points = [results["points"][name] for name in names]
            x = [point["tokens" if axis == "side" else axis] for point in points]
            for what, style in (("counted", "o-"), ("estimated", "--")):
                y = [point[f"{what}_gb"] for point in points]
                axes.plot(x, y, style, color=f"C{colour}", label=f"{speed}, {what}")
        axes.set(xlabel=label, ylim=(0, None), xlim=(0, None))
        axes.locator_params(axis="x", nbins=5)
    first = figure.get_axes()[0]
    first.set(ylabel="GB")
    first.legend(frameon=False)
    figure.suptitle(
        "d 64, 2 layers, released vocabulary; else 512², 256 tokens of text", fontsize=10
    )
    with replacing(file) as whole:
        figure.savefig(whole, dpi=120, format="png")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    if args.plot:
        results = json.loads(args.file.read_text(encoding="utf-8"))
        plot(results, args.file.with_suffix(".png"))
        return
    torch.set_num_threads(1)
    run(RandomModel.of(TINY, torch.device("cpu"), torch.float32), AXES, args.file)


if __name__ == "__main__":
    main()

"""How the time of an edit grows with tokens, steps and batch, against the FLOPs of its forwards.

``python -m mmada_parallel.benchmarks.scaling [--out FOLDER]`` writes ``scaling.json`` and
``scaling.png``: one edit per point, warm, with the paper's guidance. On a GPU the model has the
released shape (8B, bf16); on a CPU it is small (float32), runs on one thread, and what is measured
is CPU time, which others on the machine do not lengthen. Weights are random. The line is what the
FLOPs would take at the rate of a large matrix product, measured in the same run. Needs matplotlib.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.benchmarks.flops import FlopCounter
from mmada_parallel.benchmarks.measure import Clock, Report, name_of, once, parser_of, seconds
from mmada_parallel.benchmarks.shapes import RandomModel
from mmada_parallel.mmp_core import SamplerSettings, denoise
from mmada_parallel.mmp_core.files import replacing

FOLDER = Path(__file__).parent / "results"
TEXT = 64
PIXELS_PER_CODE = 16


@dataclass(frozen=True)
class Point:
    """``side``: of input and result, in pixels. ``steps``: of text; a quarter as many of the
    image."""

    side: int
    steps: int
    batch: int


@dataclass(frozen=True)
class Scale:
    """``sizes``: of the model. Each axis varies one of ``base``'s fields."""

    sizes: dict[str, int]
    dtype: torch.dtype
    matmul: int
    base: Point
    sides: tuple[int, ...] = (256, 384, 512, 640, 768)
    steps: tuple[int, ...] = (4, 8, 16, 32)
    batches: tuple[int, ...] = (1, 2, 4, 8)

    def axes(self) -> dict[str, list[Point]]:
        return {
            "tokens": [replace(self.base, side=side) for side in self.sides],
            "steps": [replace(self.base, steps=steps) for steps in self.steps],
            "batch": [replace(self.base, batch=batch) for batch in self.batches],
        }


CPU = Scale(
    {"d_model": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 768},
    torch.float32,
    matmul=1024,
    base=Point(256, 4, 1),
)
GPU = Scale({}, torch.bfloat16, matmul=8192, base=Point(512, 16, 1))
TINY = replace(
    CPU,
    sizes={**CPU.sizes, "n_layers": 1},
    sides=(32, 64),
    steps=(4, 8),
    batches=(1, 2),
    base=Point(32, 4, 1),
    matmul=64,
)


def clock_of(device: torch.device) -> Clock:
    return time.perf_counter if device.type == "cuda" else time.process_time


def measure(model: RandomModel, counter: FlopCounter, point: Point) -> dict[str, Any]:
    """Seconds, memory and FLOPs of one edit."""
    settings = SamplerSettings(text_steps=point.steps, image_steps=max(1, point.steps // 4))
    prompt = model.prompt(point.side // PIXELS_PER_CODE, TEXT, point.batch)
    denoise(model, prompt, replace(settings, text_steps=1, image_steps=1), record=0)
    counter.reset()
    results = once(lambda: denoise(model, prompt, settings, record=0), clock_of(model.device))
    tokens = model.layout.model_input(prompt, prompt.initial).ids.shape[1]
    return {
        "side": point.side,
        "tokens": tokens,
        "steps": point.steps,
        "batch": point.batch,
        **results,
        "forwards": counter.forwards,
        "tflop": (counter.blocks + counter.head) / 1e12,
    }


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """TFLOP/s of a size³ product of random numbers."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    seconds(lambda: a @ b, 3)
    return 2 * size**3 / seconds(lambda: a @ b, 9, clock_of(device)) / 1e12


def plot(results: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    labels = {"tokens": "tokens in the sequence", "steps": "text steps", "batch": "batch"}
    for axes, (axis, label) in zip(figure.subplots(1, 3), labels.items(), strict=True):
        points = results[axis]
        x = [point[axis] for point in points]
        at_peak = [point["tflop"] / results["matmul_tflops"] for point in points]
        axes.plot(x, [p["seconds"] for p in points], "o-", label="measured")
        axes.plot(x, at_peak, "--", color="grey", label="FLOPs at the rate of a large matmul")
        highest = max(point["seconds"] for point in points)
        axes.set(xlabel=label, xlim=(0, 1.08 * max(x)), ylim=(0, 1.35 * highest))
        if axis == "tokens":
            axes.set(ylabel=results["clock"])
            for point in points:
                axes.annotate(
                    f"{point['side']}²",
                    (point[axis], point["seconds"]),
                    (0, 6),
                    textcoords="offset points",
                    ha="right",
                )
            axes.legend(loc="upper left", frameon=False)
        else:
            axes.set_xticks(x)
    model, machine, rest = (results[key] for key in ("model", "machine", "where_not_varied"))
    about = f"{model}, on {machine}\nwhere not varied: {rest}"
    figure.suptitle(about, fontsize=10)
    with replacing(file) as whole:
        figure.savefig(whole, dpi=120, format="png")


def run(scale: Scale, device: torch.device, folder: Path, minutes: float) -> dict[str, Any]:
    report = Report(folder / "scaling.json", time.monotonic() + 60 * minutes)
    rate = matmul_rate(device, scale.dtype, scale.matmul)
    model = RandomModel.of(scale.sizes, device, scale.dtype)
    config, base = model.transformer.config, scale.base
    kind = f"d {config.d_model}, {config.n_layers} layers, {str(scale.dtype).partition('.')[2]}"
    report.results |= {
        "command": "python -m mmada_parallel.benchmarks.scaling",
        "machine": name_of(device) + ", one thread" * (device.type == "cpu"),
        "torch": torch.__version__,
        "model": f"{kind}, random weights",
        "where_not_varied": f"{base.side}² pixels, {base.steps} text steps, batch {base.batch}, "
        f"{TEXT} words, guidance 3.5",
        "clock": "seconds per edit" if device.type == "cuda" else "CPU seconds per edit",
        "matmul_tflops": rate,
    }
    counter = FlopCounter(model.transformer)
    for axis, points in scale.axes().items():
        expected, measured = 0.0, []
        for point in points:
            name = f"{axis} {getattr(point, 'side' if axis == 'tokens' else axis)}"
            results = report.part(name, expected, lambda p=point: measure(model, counter, p))
            if results:
                expected = 2.5 * results["seconds"]
                measured.append(report.results.pop(name))
        report.results[axis] = measured
    report.save()
    if all(report.results[axis] for axis in scale.axes()):
        plot(report.results, folder / "scaling.png")
    return report.results


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no point begins")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to see it run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    on_gpu = torch.cuda.is_available() and not args.tiny
    device = torch.device("cuda:0" if on_gpu else "cpu")
    scale = TINY if args.tiny else GPU if on_gpu else CPU
    print(json.dumps(run(scale, device, args.out, args.minutes), indent=1))


if __name__ == "__main__":
    main()

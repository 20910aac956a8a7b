"""The released shape (8B, variant A, 512×512) with random weights on a GPU, within minutes.

``python -m mmada_parallel.benchmarks.gpu [--reference PATH] [--minutes 7.5] [--out FILE]`` prints
JSON: one forward against a measured matmul peak, what a step spends outside the transformer with
and without kernels, seconds and peak memory per edit (denoising alone) at each speed level in
bf16, fp8 and int8, and the same edit by the reference implementation where a checkout is given.
What is done is in FILE at any time; what there was no time for is named as skipped.

``--tiny`` runs all of it on a model of no size, on a CPU, to see that it runs.
"""

from __future__ import annotations

import json
import statistics
import time
import typing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.benchmarks import sampler
from mmada_parallel.benchmarks.measure import (
    Inside,
    Report,
    kernels_off,
    measured,
    name_of,
    once,
    parser_of,
    seconds,
)
from mmada_parallel.benchmarks.shapes import TINY, RandomModel
from mmada_parallel.mmp_core import SamplerSettings, denoise
from mmada_parallel.mmp_core.model import graphs, kernels
from mmada_parallel.mmp_core.model.formats import FORMATS, Format
from mmada_parallel.mmp_core.model.kernels import ImageLogits, TextLogits
from mmada_parallel.mmp_core.model.quantised import WeightOnlyLinear
from torch import Tensor, nn

LEVELS: tuple[str, ...] = typing.get_args(typing.get_type_hints(SamplerSettings)["speed"])
ADAPTIVE = ("fast", "fastest")
README = "128 text, 64 image steps, image guidance 4"
NOTE = (
    "Weights are random: levels that reveal what the model is sure of take as many steps as these "
    "weights make them, which says nothing about a trained model."
)


@dataclass(frozen=True)
class Size:
    """``sizes``: of the model. ``grid``, ``text``: codes per side and words of the answer.
    ``steps``: what the 128 text steps of a full edit are here."""

    sizes: dict[str, int]
    grid: int
    text: int
    steps: int
    matmul: int

    def settings(self, name: str) -> SamplerSettings:
        full = SamplerSettings(text_steps=self.steps, image_steps=self.steps * 30 // 128)
        if name == README:
            guidance = {"joint_guidance": 0.0, "image_guidance": 4.0}
            return replace(full, image_steps=self.steps // 2, **guidance)
        return full


FULL = Size({}, grid=32, text=256, steps=128, matmul=8192)
SMALL = Size(TINY, grid=4, text=8, steps=8, matmul=64)


def matmul_peak(device: torch.device, size: int) -> float:
    """TFLOP/s of a size³ bf16 product of random numbers."""
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    seconds(lambda: a @ b, 5)
    return 2 * size**3 / seconds(lambda: a @ b, 20) / 1e12


def forward(model: RandomModel, ids: Tensor, peak: float) -> dict[str, float]:
    model.transformer(ids)
    taken = seconds(lambda: model.transformer(ids), 10)
    rate = model.transformer.config.forward_flop(ids.shape[1]) / taken / 1e12
    return {"seconds": taken, "tflops": rate, "share_of_peak": rate / peak}


def outside(model: RandomModel, size: Size) -> dict[str, Any]:
    """Share of a quarter of an edit that is spent outside the transformer."""
    steps = size.steps // 4
    base = replace(size.settings(README), text_steps=steps, image_steps=steps // 2)
    prompt = model.prompt(size.grid, size.text)

    def share(settings: SamplerSettings) -> float:
        denoise(model, prompt, replace(settings, text_steps=4, image_steps=2), record=0)
        shares = []
        for _ in range(3):
            with Inside(model.transformer, model.device) as inside:
                denoise(model, prompt, settings, record=0)
            shares.append(inside.outside_share())
        return statistics.median(shares)

    results = {}
    for name, settings in {
        "exact": base,
        "exact, text temperature 0.7": replace(base, text_temperature=0.7),
        "cached": replace(base, speed="cached"),
    }.items():
        results[name] = {"kernels": share(settings)}
        with kernels_off():
            results[name]["torch"] = share(settings)
    return results


@torch.no_grad()
def decisions(model: RandomModel, size: Size) -> dict[str, Any]:
    """One step's decisions at full size, by kernels and by torch: milliseconds, peak memory beyond
    the inputs, and the share of positions decided alike."""
    device, width = model.device, model.transformer.config.d_model
    dtype = model.transformer.layers["ln_f"].weight.dtype
    words, codes = model.layout.text_choices, model.layout.codebook_size
    cells = size.grid**2
    hidden = torch.randn(2, 1, size.text, width, device=device, dtype=dtype)
    logits = torch.randn(2, 1, cells, codes, device=device, dtype=dtype)
    choices = slice(words.start, words.stop)
    text = TextLogits(model.transformer, (hidden[0],), (), choices)
    guided = TextLogits(model.transformer, tuple(hidden), (1.5,), choices)
    draws = torch.empty(1, size.text, text.choices, device=device).exponential_()
    code_draws = torch.empty(1, cells, codes, device=device).exponential_()
    image = ImageLogits(tuple(logits), (4.0,))
    results = {}
    for name, run in {
        "text": lambda: text.choose(0.0, None),
        "text, temperature 0.7": lambda: text.choose(0.7, draws),
        "text, two branches": lambda: guided.choose(0.0, None),
        "image": lambda: image.choose(code_draws),
    }.items():
        ours, _ = run()
        timed = measured(lambda r=run: seconds(r, 20))
        with kernels_off():
            theirs, _ = run()
            by_torch = measured(lambda r=run: seconds(r, 20))
        results[name] = {"kernel": timed, "torch": by_torch}
        results[name]["agree"] = (ours == theirs).double().mean().item()
    return results


@torch.no_grad()
def graph_gain(device: torch.device) -> dict[str, Any]:
    """Milliseconds of a forward with and without a CUDA graph, over the FLOP of a block."""
    results = {}
    for width, tokens in ((256, 150), (512, 738), (512, 2434), (1024, 2434), (4096, 600)):
        sizes = {"d_model": width, "n_layers": 8, "mlp_hidden_size": 3 * width}
        heads = {"n_heads": width // 64, "n_kv_heads": width // 64}
        model = RandomModel.of({**sizes, **heads}, device, torch.bfloat16)
        ids = torch.randint(0, 126000, (1, tokens), device=device)
        model.transformer(ids)
        replay = graphs.capture(lambda m=model, i=ids: m.transformer(i))
        results[f"d_model {width}, 8 blocks, {tokens} tokens"] = {
            "gflop_per_block": model.transformer.config.linear_flop(tokens) / 1e9,
            "eager_ms": 1e3 * seconds(lambda m=model, i=ids: m.transformer(i), 20),
            "graph_ms": 1e3 * seconds(replay, 20),
        }
    return results


def edit(model: RandomModel, size: Size, settings: SamplerSettings) -> dict[str, float]:
    """Seconds and peak memory of one edit, once warm."""
    prompt = model.prompt(size.grid, size.text)
    denoise(model, prompt, replace(settings, text_steps=4, image_steps=3), record=0)
    return once(lambda: denoise(model, prompt, settings, record=0))


def upstream_settings(size: Size) -> SamplerSettings:
    """The reference's README setting."""
    return SamplerSettings.upstream(
        text_steps=size.steps, image_steps=size.steps // 2, image_guidance=4.0
    )


def reference_edit(model: RandomModel, size: Size, path: Path) -> dict[str, float]:
    """The reference implementation's own time, with our weights, at its README setting."""
    released = sampler.reference_modules(path)
    other = sampler.theirs(released, model)
    prompt = model.prompt(size.grid, size.text)
    upstream = upstream_settings(size)

    def run(settings: SamplerSettings) -> None:
        sampler.run_reference(released, other, model.layout, prompt, settings)

    try:
        run(replace(upstream, text_steps=4, image_steps=2))
        return once(lambda: run(upstream))
    finally:
        torch.backends.cuda.enable_mem_efficient_sdp(True)  # which the reference switches off


@torch.no_grad()
def quantise_linears(blocks: nn.Module, form: Format) -> None:
    """As our converter does, in memory."""
    for name, layer in list(blocks.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, own = name.rpartition(".")
            quantised = WeightOnlyLinear.of(layer.weight, form)
            blocks.get_submodule(parent).register_module(own, quantised)


def quantise_blocks(model: RandomModel, form: Format) -> dict[str, float]:
    quantise_linears(model.transformer.layers["blocks"], form)
    stored = model.transformer.state_dict().values()
    return {"gb": sum(tensor.nbytes for tensor in stored) / 1e9}


def edits(
    report: Report,
    model: RandomModel,
    size: Size,
    kind: str,
    *,
    expected: float = 0.0,
    reference: Path | None = None,
) -> float:
    """All levels at the README setting and at the defaults, the most telling first.

    ``expected``: seconds that the slowest may take. Returns what it took.
    """

    def measure(setting: str, level: str) -> None:
        nonlocal expected
        settings = replace(size.settings(setting), speed=level)
        name = f"{kind}, {setting}, {level}"
        results = report.part(name, 1.2 * expected + 2, partial(edit, model, size, settings)) or {}
        expected = max(expected, results.get("seconds", 0.0))

    measure(README, "exact")
    if reference is not None:
        name = f"{kind}, {README}, reference"
        report.part(name, 6 * expected, partial(reference_edit, model, size, reference))
        upstream = upstream_settings(size)
        name = f"{kind}, {README}, exact, its tokens (preset upstream)"
        report.part(name, 1.3 * expected, partial(edit, model, size, upstream))
    others = sorted(LEVELS[1:], key=ADAPTIVE.__contains__)
    for level in others:
        measure(README, level)
    for level in ("exact", *others):
        measure("defaults", level)
    return expected


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Seconds of the reference over those of each edit at its setting."""
    times = {
        name: part["seconds"]
        for name, part in results.items()
        if README in name and "seconds" in part
    }
    reference = [taken for name, taken in times.items() if name.endswith("reference")]
    return {name: reference[0] / taken for name, taken in times.items() if reference}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--reference", type=Path, metavar="PATH", help="checkout to time beside")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no part begins")
    parser.add_argument("--out", type=Path, metavar="FILE", help="written after each part")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, on a CPU")
    args = parser.parse_args()
    if not (args.tiny or torch.cuda.is_available()):
        raise SystemExit("There is no CUDA GPU here, which this measures; --tiny runs without.")
    reference = args.reference and args.reference.expanduser().resolve()
    device = torch.device("cpu" if args.tiny else "cuda:0")
    report = Report(args.out, time.monotonic() + 60 * args.minutes)
    measure_all(report, SMALL if args.tiny else FULL, device, reference)
    report.save()
    print(json.dumps(report.results, indent=1))


def measure_all(report: Report, size: Size, device: torch.device, reference: Path | None) -> None:
    report.results |= {
        "device": name_of(device),
        "torch": torch.__version__,
        "kernels_run": kernels.available(device),
        "note": NOTE,
    }
    slowest = measure_bf16(report, size, device, reference)
    for kind, form in FORMATS.items():
        measure_quantised(report, size, device, kind, form, slowest)
    report.results["times_as_fast_as_the_reference"] = ratios(report.results)
    report.save()
    if device.type == "cuda":
        report.part("graphs", 10, partial(graph_gain, device))


def measure_quantised(
    report: Report, size: Size, device: torch.device, kind: str, form: Format, expected: float
) -> None:
    model = RandomModel.of(size.sizes, device, torch.bfloat16)
    if report.part(f"{kind}, weights", 10, partial(quantise_blocks, model, form)):
        edits(report, model, size, kind, expected=expected)


def measure_bf16(report: Report, size: Size, device: torch.device, reference: Path | None) -> float:
    """Seconds of the slowest edit."""
    peak = report.part("matmul_peak_tflops", 2, partial(matmul_peak, device, size.matmul))
    model = RandomModel.of(size.sizes, device, torch.bfloat16)
    prompt = model.prompt(size.grid, size.text)
    ids = model.layout.model_input(prompt, prompt.initial).ids
    report.results["tokens"] = ids.shape[1]
    report.part("forward", 5, partial(forward, model, ids, peak))
    report.part("decisions", 20, partial(decisions, model, size))
    slowest = edits(report, model, size, "bf16", reference=reference)
    report.part("outside", 30, partial(outside, model, size))
    return slowest


if __name__ == "__main__":
    main()

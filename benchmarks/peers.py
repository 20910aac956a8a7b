"""Published accelerations beside the speed levels, on the demo's weights and held-out tasks.

``python -m mmada_parallel.benchmarks.peers [--cases 200] [--out FILE]`` runs every method on one
task after the other, so that their times can be compared in pairs, writes ``FILE`` after each task
and continues from it when it is started again. Temperatures are 0, so that a method that changes
nothing gives the tokens of ``exact``: *agreement* is the share of equal tokens. FLOPs are those of
all forwards and logits, counted. ``--plot`` draws a picture beside ``FILE`` (needs matplotlib).
``--summary`` prints ``FILE`` without its cases, as ``results/peers.json`` has it.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.benchmarks import peer_policies as peers
from mmada_parallel.benchmarks.flops import FlopCounter
from mmada_parallel.benchmarks.measure import name_of, parser_of
from mmada_parallel.benchmarks.shapes import RandomModel
from mmada_parallel.demo.checker import check
from mmada_parallel.demo.evaluate import held_out, prompt_of
from mmada_parallel.demo.tasks import Task
from mmada_parallel.mmp_core import (
    Prompt,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.mmp_core.sampler.cache import PROMPT_EVERY, CachePolicy
from mmada_parallel.mmp_core.sampler.guidance import CorrectedGuidance
from mmada_parallel.mmp_core.sampler.ml_cache import MLCache
from mmada_parallel.mmp_core.sampler.plan import Plan
from mmada_parallel.mmp_core.sampler.policies import Policies, corrected_policies
from mmada_parallel.mmp_core.sampler.positions import masked_counts, seeded_generators
from mmada_parallel.mmp_core.sampler.selection import CorrectedSelection

FILE = Path("peers.json")
BASE = SamplerSettings(image_temperature=0.0)
MEASURES = ("picture", "sentence", "agree")

AnyModel = Model | RandomModel
Change = Callable[[AnyModel, Prompt, SamplerSettings, Policies], Policies]
"""Policies of a method from those of its settings."""


@dataclass(frozen=True)
class Method:
    """``kind``: what it is drawn as. ``kept``: numbers of width d_model that are kept for each
    token and layer. ``settings``: what differs from :data:`BASE`."""

    kind: str
    kept: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    change: Change | None = None


def _cache(make: Callable[[], Any]) -> Change:
    return lambda model, prompt, settings, policies: replace(policies, cache=make())


def _ml_cache(reused: float) -> Change:
    def change(model: AnyModel, prompt: Prompt, settings: SamplerSettings, policies: Policies):
        layout, guidance = model.layout, policies.guidance
        assert isinstance(guidance, CorrectedGuidance)
        codes = layout.image_choices
        rule = MLCache(model.transformer, codes, len(policies.plan), reused)
        return replace(policies, cache=peers.JointMLCache(rule, guidance.text_choices))

    return change


def _by_confidence(sure: float = math.inf, factor: float | None = None, prefix: bool = True):
    def change(model: AnyModel, prompt: Prompt, settings: SamplerSettings, policies: Policies):
        start = prompt.initial
        steps = max(*masked_counts(start.text), *masked_counts(start.image), 1)
        streams = seeded_generators([0] * prompt.batch, model.device)
        selection = CorrectedSelection(settings, streams, sure)
        if factor is not None:
            selection = peers.FactorSelection(settings, streams, factor)
        plan = peers.ConfidencePlan.at_most(steps)
        cache = peers.PrefixCache() if prefix else None
        return replace(policies, plan=plan, selection=selection, cache=cache)

    return change


def _sprint(model: AnyModel, prompt: Prompt, settings: SamplerSettings, policies: Policies):
    streams = seeded_generators([0] * prompt.batch, model.device)
    selection = CorrectedSelection(settings, streams, 0.93)
    return replace(policies, selection=selection, cache=peers.PrefixCache())


def _prompt_kept(model: AnyModel, prompt: Prompt, settings: SamplerSettings, policies: Policies):
    assert isinstance(policies.cache, CachePolicy)
    return replace(policies, cache=replace(policies.cache, prompt_every=PROMPT_EVERY))


def _fewer(share: int) -> Method:
    steps = {"text_steps": BASE.text_steps // share, "image_steps": -(-BASE.image_steps // share)}
    return Method("fewer steps", settings=tuple(steps.items()))


_ONE = (("text_steps", 1), ("image_steps", 1))
OURS, REDUCED = "this pack", (8, 16, 32)
METHODS = {
    "exact": Method(OURS),
    "cached": Method(OURS, 2, (("speed", "cached"),)),
    "fast": Method(OURS, 0, (("speed", "fast"),)),
    "fastest": Method(OURS, 2, (("speed", "fastest"),)),
    **{f"steps / {share}": _fewer(share) for share in REDUCED},
    "one step": Method("ours, by a target", settings=_ONE),
    "one step, no guidance": Method("ours, by a target", settings=(*_ONE, ("joint_guidance", 0.0))),
    "ML-Cache 0.9": Method("ML-Cache", 2, change=_ml_cache(0.9)),
    "dLLM-Cache 4": Method("dLLM-Cache", 4, change=_cache(lambda: peers.DLLMCache(4))),
    "cached, prompt kept": Method(OURS, 2, (("speed", "cached"),), _prompt_kept),
    "Fast-dLLM 0.9, no cache": Method("Fast-dLLM", change=_by_confidence(0.9, prefix=False)),
    "Fast-dLLM 0.9": Method("Fast-dLLM", 2, change=_by_confidence(0.9)),
    "Fast-dLLM factor 1": Method("Fast-dLLM", 2, change=_by_confidence(factor=1.0)),
    "SPRINT-like 0.93": Method("SPRINT-like", 2, (("speed", "fast"),), _sprint),
}


def run(
    model: Model, work: FlopCounter, name: str, prompt: Prompt
) -> tuple[TokenState, dict[str, float]]:
    """What ``name`` makes of ``prompt``, and what it took."""
    model, settings = of_method(model, name), settings_of(name)
    work.reset()
    began = time.process_time()
    policies = policies_of(model, prompt, name)
    final = denoise(model, prompt, settings, policies=policies, record=0).final
    taken = time.process_time() - began
    return final, {
        "gflop": operations(model, work) / 1e9,
        "forwards": work.forwards,
        "cpu_seconds": taken,
    }


def settings_of(name: str) -> SamplerSettings:
    return replace(BASE, **dict(METHODS[name].settings))


def of_method(model: AnyModel, name: str) -> AnyModel:
    """``model``, with a transformer as the method needs it, which counts what it leaves out."""
    if METHODS[name].kind != "dLLM-Cache":
        return model
    return replace(model, transformer=peers.LayerwiseTransformer.of(model.transformer))


def policies_of(model: AnyModel, prompt: Prompt, name: str, plan: Plan | None = None) -> Policies:
    """The method's policies. ``plan``: instead of that of its settings."""
    settings, change = settings_of(name), METHODS[name].change
    policies = corrected_policies(model, prompt, settings)
    if plan:
        policies = replace(policies, plan=plan)
    return change(model, prompt, settings, policies) if change else policies


def operations(model: AnyModel, work: FlopCounter) -> float:
    """FLOPs that ``work`` has counted, less those that the transformer left out."""
    return work.total - getattr(model.transformer, "not_done", 0.0)


def one_case(
    model: Model, work: FlopCounter, task: Task, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """What methods take and give for ``task``; ``exact`` is the first."""
    prompt, exact = prompt_of(model, task), None
    results: dict[str, dict[str, float]] = {}
    for name in names:
        final, taken = run(model, work, name, prompt)
        exact = exact or final
        verdict = check(task, decode_image(model, final)[0], decode_text(model, final)[0])
        same = [(a == b).float().mean() for a, b in zip(_parts(final), _parts(exact), strict=True)]
        base = results.get("exact", taken)["cpu_seconds"]
        results[name] = {
            **taken,
            "cpu_ratio": base / taken["cpu_seconds"],
            "text_agreement": float(same[0]),
            "image_agreement": float(same[1]),
            "identical": float(min(same) == 1),
            **{measure: float(getattr(verdict, measure)) for measure in MEASURES},
        }
    return results


def _parts(state: TokenState) -> tuple[torch.Tensor, torch.Tensor]:
    return state.text, state.image


def summary(cases: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the cases, and ratios to ``exact``: of FLOPs, and of CPU time by pairs."""
    table = {}
    for name, method in METHODS.items():
        rows = [case[name] for case in cases.values() if name in case]
        means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        exact = sum(case["exact"]["gflop"] for case in cases.values() if name in case) / len(rows)
        ratios = [row["cpu_ratio"] for row in rows]
        means |= {
            "cases": len(rows),
            "flop_ratio": exact / means["gflop"],
            "cpu_time_ratio": statistics.median(ratios),
            "kept": method.kept,
        }
        table[name] = means
    return table


def plot(results: dict[str, Any], file: Path) -> None:
    """Agreement with ``exact`` over FLOPs. Methods that are close share a label."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    places: list[tuple[bool, float, float, list[str]]] = []
    for colour, kind in enumerate(dict.fromkeys(method.kind for method in METHODS.values())):
        names = [name for name, method in METHODS.items() if method.kind == kind]
        rows = [results["summary"][name] for name in names]
        x = [100 / row["flop_ratio"] for row in rows]
        y = [100 * row["identical"] for row in rows]
        ours = kind == OURS
        look = {"marker": "*", "s": 90} if ours else {"marker": "o", "s": 40}
        axes.scatter(x, y, color=f"C{colour}", label=kind, **look)
        for name, a, b in zip(names, x, y, strict=True):
            alike = (place for place in places if place[0] == ours)
            place = next((p for p in alike if 0.75 < p[1] / a < 1.3 and abs(p[2] - b) < 1.2), None)
            if place is None:
                places.append(place := (ours, a, b, []))
            place[3].append(name)
    for ours, a, b, names in places:
        side = {"xytext": (6, 4), "va": "bottom"} if ours else {"xytext": (7, 4), "va": "top"}
        label = "\n".join(names)
        axes.annotate(label, (a, b), textcoords="offset points", fontsize=8, **side)
    ticks = (2, 3, 5, 10, 20, 50, 100)
    axes.set(xscale="log", xlabel="FLOPs, % of exact", ylabel="results identical to exact, %")
    axes.set(xlim=(1.8, 140), xticks=ticks, xticklabels=map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(f"{results['done']} held-out tasks of the demo, temperatures 0", fontsize=10)
    with replacing(file) as whole:
        figure.savefig(whole, dpi=120, format="png")


def measure(model: Model, count: int, file: Path) -> dict[str, Any]:
    """Run the cases that ``file`` does not have yet, and write it after each."""
    results: dict[str, Any] = {"cases": {}}
    if file.exists():
        results = json.loads(file.read_text(encoding="utf-8"))
    work = FlopCounter(model.transformer)
    for number, task in enumerate(held_out(count)):
        known = results["cases"].setdefault(str(number), {})
        missing = [name for name in METHODS if name not in known]
        if not missing:
            continue
        known |= one_case(model, work, task, ["exact", *(n for n in missing if n != "exact")])
        results |= {
            "command": f"python -m mmada_parallel.benchmarks.peers --cases {count}",
            "machine": f"one thread, {name_of(model.device)}, torch {torch.__version__}, fp32, "
            "busy with other work",
            "date": date.today().isoformat(),
            "done": sum(len(case) == len(METHODS) for case in results["cases"].values()),
            "summary": summary(results["cases"]),
        }
        with replacing(file) as whole:
            whole.write_text(json.dumps(results), encoding="utf-8")
    return results


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--plot", action="store_true", help="draw the cases that are there")
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.plot:
        results = json.loads(args.out.read_text(encoding="utf-8"))
        plot(results, args.out.with_suffix(".png"))
    elif args.summary:
        results = json.loads(args.out.read_text(encoding="utf-8"))
        print(json.dumps({k: v for k, v in results.items() if k != "cases"}, indent=1))
    else:
        measure(load_checkpoint("demo", dtype=torch.float32), args.cases, args.out)


if __name__ == "__main__":
    main()

"""What fewer steps, caches and no guidance cost in results of the demo: the curves of a target.

``python -m mmada_parallel.benchmarks.target [--cases 100] [--out FILE]`` runs each reduction of
``mmp_core/target.py`` on held-out tasks at temperatures 0, writes ``FILE`` after each task and
continues from it when it is started again. *identical*: the share of results that are those of
"exact", text and picture. *agree*: that are right and agree. *percent*: operations, of those of
"exact". ``--summary`` prints ``FILE`` without its cases, as ``results/target.json`` has it.
"""

from __future__ import annotations

import json
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.benchmarks.measure import name_of, parser_of
from mmada_parallel.demo.checker import check
from mmada_parallel.demo.evaluate import held_out, prompt_of
from mmada_parallel.demo.tasks import Task
from mmada_parallel.mmp_core import (
    SamplerSettings,
    decode_image,
    decode_text,
    denoise,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.mmp_core.target import FACTORS, Reduction

BASE = SamplerSettings(image_temperature=0.0)
REDUCTIONS = [
    Reduction(factor, cached, guided)
    for cached, guided in product((False, True), (True, False))
    for factor in FACTORS
]
MEASURES = ("identical", "agree", "percent")


def name(reduction: Reduction) -> str:
    """Such as "2 cached unguided"."""
    words = [f"{reduction.factor:g}", "cached" * reduction.cached]
    return " ".join(filter(None, [*words, "" if reduction.guided else "unguided"]))


def one_case(model: Model, task: Task) -> dict[str, list[float]]:
    """:data:`MEASURES` of each reduction."""
    prompt = prompt_of(model, task)
    exact = denoise(model, prompt, BASE, record=0)
    results = {}
    for reduction in REDUCTIONS:
        plain = reduction == Reduction()
        run = exact if plain else denoise(model, prompt, reduction.of(BASE, prompt), record=0)
        same = torch.equal(run.final.text, exact.final.text)
        same &= torch.equal(run.final.image, exact.final.image)
        verdict = check(task, decode_image(model, run.final)[0], decode_text(model, run.final)[0])
        percent = 100 * run.operations / exact.operations
        results[name(reduction)] = [float(same), float(verdict.agree), percent]
    return results


def summary(cases: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Means over the cases."""
    means = {}
    for reduction in map(name, REDUCTIONS):
        columns = zip(*(case[reduction] for case in cases.values()), strict=True)
        rounded = (round(sum(column) / len(cases), 4) for column in columns)
        means[reduction] = dict(zip(MEASURES, rounded, strict=True))
    return means


def curves(means: dict[str, dict[str, float]]) -> dict[tuple[bool, bool], tuple[float, ...]]:
    """As ``mmp_core.target.CURVES`` has them."""
    return {
        curve: tuple(means[name(Reduction(factor, *curve))]["identical"] for factor in FACTORS)
        for curve in product((False, True), (True, False))
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("target.json"))
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    results: dict[str, Any] = {"cases": {}}
    if args.out.exists():
        results = json.loads(args.out.read_text(encoding="utf-8"))
    if args.summary:
        print(json.dumps({k: v for k, v in results.items() if k != "cases"}, indent=1))
        return
    model = load_checkpoint("demo", dtype=torch.float32)
    for number, task in enumerate(held_out(args.cases)):
        if str(number) in results["cases"]:
            continue
        results["cases"][str(number)] = one_case(model, task)
        results |= {
            "command": f"python -m mmada_parallel.benchmarks.target --cases {args.cases}",
            "machine": f"{name_of(model.device)}, torch {torch.__version__}, fp32",
            "date": date.today().isoformat(),
            "done": len(results["cases"]),
            "summary": summary(results["cases"]),
        }
        with replacing(args.out) as whole:
            whole.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

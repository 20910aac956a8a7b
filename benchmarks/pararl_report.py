"""Sums up what ``benchmarks/pararl.py`` trained and judged: figures and plots.

``python -m mmada_parallel.benchmarks.pararl_report`` writes ``pararl.json``, ``pararl_reward.png``,
``pararl_agreement.png`` and ``pararl_samples.png`` to ``--out``. Needs matplotlib.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.benchmarks import pararl
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.benchmarks.pararl import ARMS, CONDITIONS, SEEDS, judged_file, run_folder
from mmada_parallel.demo import open_tasks
from mmada_parallel.demo.dataset import HELD_OUT, cases_of
from mmada_parallel.training.samples import answers
from mmada_parallel.views.examples import Answer, answers_sheet
from PIL import Image

MEASURES = ("picture", "sentence", "agree", "kept", "clip", "words", "distinct", "variety")
_SMOOTHED = 0.1
"""Share of a run's steps that a point of the reward curve averages."""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/pararl"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    args = parser.parse_args()
    results = summary(args.folder)
    (args.out / "pararl.json").write_text(json.dumps(results, indent=1) + "\n")
    draw_rewards(args.folder, args.out / "pararl_reward.png")
    draw_agreement(results, args.out / "pararl_agreement.png")
    samples(args.folder).save(args.out / "pararl_samples.png")


def summary(folder: Path) -> dict[str, Any]:
    return {
        "command": "python -m mmada_parallel.benchmarks.pararl",
        "machine": f"{platform.machine()} CPU, torch {torch.__version__}, one thread per run",
        "tuning": _lines(folder / "start" / "log.jsonl")[-1],
        "training": {arm: _training(folder, arm) for arm in ARMS if _logs(folder, arm)},
        "judged": {
            condition: {
                arm: judged
                for arm in ("start", *ARMS)
                if (judged := _judged(folder, arm, condition))
            }
            for condition in CONDITIONS
        },
    }


def _training(folder: Path, arm: str) -> dict[str, Any]:
    logs = _logs(folder, arm)
    settings = asdict(pararl.settings_of(ARMS[arm], len(logs[0]), SEEDS[0]))
    return {
        "steps": [len(log) for log in logs],
        "reward_calls": [log[-1]["reward_calls"] for log in logs],
        "seconds_per_step": _mean([_mean([line["seconds"] for line in log]) for log in logs]),
        "kl_at_end": [log[-1]["kl"] for log in logs],
        "settings": {k: v for k, v in settings.items() if k not in ("seed", "steps")},
    }


def _logs(folder: Path, arm: str) -> list[list[dict[str, float]]]:
    files = [run_folder(folder, arm, seed) / "log.jsonl" for seed in SEEDS]
    return [_lines(file) for file in files if file.exists()]


def _lines(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _judged(folder: Path, arm: str, condition: str) -> dict[str, Any]:
    """Each measure: mean over seeds, each seed's, and the gain over the start, seed by seed.

    ``interval``: half width at 95 % over cases, of the mean over seeds taken as independent.
    """
    results = {seed: _read(judged_file(folder, arm, seed, condition)) for seed in SEEDS}
    start = {seed: _read(judged_file(folder, "start", seed, condition)) for seed in SEEDS}
    seeds = [seed for seed in SEEDS if results[seed] and start[seed]]
    measures = {}
    for name in MEASURES if seeds else ():
        if name not in results[seeds[0]]:
            continue
        values = [results[seed][name] for seed in seeds]
        measures[name] = {"mean": _mean(values), "seeds": values}
        if name in results[seeds[0]]["interval"]:
            widths = [results[seed]["interval"][name] for seed in seeds]
            measures[name]["interval"] = math.hypot(*widths) / len(seeds)
        if arm != "start":
            gains = [results[seed][name] - start[seed][name] for seed in seeds]
            measures[name]["gain"] = {"mean": _mean(gains), "seeds": gains}
    return measures


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def draw_rewards(folder: Path, file: Path) -> None:
    """Mean reward against reward calls, one line per arm: the mean of its seeds, smoothed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for arm in ARMS:
        logs = _logs(folder, arm)
        if not logs:
            continue
        steps = min(map(len, logs))
        means = [_mean([log[i]["reward_mean"] for log in logs]) for i in range(steps)]
        calls = [logs[0][i]["reward_calls"] for i in range(steps)]
        axes.plot(calls, list(_smooth(means, max(1, round(_SMOOTHED * steps)))), label=arm)
    axes.set(
        xlabel="reward calls",
        ylabel="mean reward of the rollouts",
        title="Rollouts on open training tasks: mean of the seeds, running mean\n"
        "(the arms' rewards differ: of the final pair, or of steps along the way)",
    )
    axes.legend()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _smooth(values: Sequence[float], window: int) -> Iterable[float]:
    for i in range(len(values)):
        part = values[max(0, i + 1 - window) : i + 1]
        yield _mean(part)


def draw_agreement(results: Mapping[str, Any], file: Path) -> None:
    """Agreement, picture and sentence right, per arm and condition, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        1, len(CONDITIONS), figsize=(14, 4.5), sharey=True, layout="constrained"
    )
    for axes, (condition, arms) in zip(rows, results["judged"].items(), strict=True):
        for offset, name in enumerate(("agree", "picture", "sentence")):
            places = [i + (offset - 1) * 0.25 for i in range(len(arms))]
            means = [100 * arm[name]["mean"] for arm in arms.values()]
            widths = [100 * arm[name]["interval"] for arm in arms.values()]
            axes.bar(places, means, 0.25, yerr=widths, label=name, capsize=2)
        axes.set_xticks(
            range(len(arms)), list(arms), rotation=40, ha="right", rotation_mode="anchor"
        )
        axes.set(title=condition, ylim=(0, 100))
    rows[0].set_ylabel("% of held-out cases, mean of the seeds")
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def samples(folder: Path, arm: str = "3 steps", count: int = 12) -> Image.Image:
    """Held-out cases as the start (left) and the trained model (right) answer them, sampled as in
    training."""
    sheets = []
    for trained in (False, True):
        model = pararl.load(folder)
        if trained:
            pararl.put_on(model, folder, arm, SEEDS[0])
        tasks = [open_tasks.task(HELD_OUT + number) for number in range(count)]
        cases = cases_of(model, tasks)
        pairs = answers(model, cases, sampler=pararl.ROLLOUTS, micro_batch=count)
        shown = [(pair.case.instruction, pair.text, pair.picture) for pair in pairs]
        sheets.append(answers_sheet(starmap(Answer, shown), columns=1, side=96))
    width = sum(sheet.width for sheet in sheets)
    both = Image.new("RGB", (width, max(sheet.height for sheet in sheets)), "white")
    both.paste(sheets[0], (0, 0))
    both.paste(sheets[1], (sheets[0].width, 0))
    return both


if __name__ == "__main__":
    main()

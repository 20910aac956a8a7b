"""What the runs of ``pararl_study`` say: sums over starts, and plots. Needs matplotlib.

``python -m mmada_parallel.benchmarks.pararl_report`` reads one JSON file for each run and writes
beside them ``summary.json``: by arm and condition the gain over the start, per start averaged over
its runs, over starts its mean with the t interval and that of a bootstrap; ``comparisons.json``:
the same of what ``COMPARED`` sets against each other; ``gains.png`` and ``rewards.png``.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmada_parallel.benchmarks.pararl_study import ARMS, CONDITIONS, MEASURES, RESULTS, Arm

RESAMPLES = 10_000
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % points of Student's distribution with 1, 2, … degrees of freedom."""
SMOOTHED = 8
"""Steps of training that a point of the reward curve averages."""

_ARMS_COMPARED: tuple[tuple[Arm, Arm], ...] = (
    ("trajectory", "trajectory, 48 steps"),
    ("trajectory, 48 steps", "output"),
    ("trajectory, 48 steps", "s = 3"),
    ("s = 3", "output"),
    ("s = 3", "output, equal calls"),
    *((f"s = {s}", "s = 3") for s in (1, 2, 4)),
)
COMPARED: dict[str, tuple[tuple[Arm, str], tuple[Arm, str]]] = {
    f"{arm} over {other}, {condition}": ((arm, condition), (other, condition))
    for arm, other in _ARMS_COMPARED
    for condition in ("default", "trained")
} | {
    "trained and unguided over start and guided": (
        ("trajectory, 48 steps", "unguided"),
        ("none", "default"),
    ),
    "start, unguided over guided": (("none", "unguided"), ("none", "default")),
    "start, text first over parallel": (("none", "text first"), ("none", "default")),
    "trained and parallel over start and text first": (
        ("trajectory", "default"),
        ("none", "text first"),
    ),
}
"""What is set against what: an arm under a condition, and another."""


def summary(results: Path) -> dict[str, Any]:
    """Gains in points over the starts, by arm, condition and measure (agreement at the top)."""
    runs = read(results)
    starts = [one for one in runs if one["arm"] == "none"]
    arms: dict[str, Any] = {}
    for arm in ARMS[1:]:
        own = [one for one in runs if one["arm"] == arm]
        found = {
            c: gains(own, starts, (c, c), starts) for c in CONDITIONS if by_start(own, c, "agree")
        }
        if found:
            arms[arm] = found
    return arms


def comparisons(results: Path) -> dict[str, Any]:
    """Differences in points between the pairs of ``COMPARED`` that were run, over starts."""
    runs, found = read(results), {}
    starts = [one for one in runs if one["arm"] == "none"]
    for name, ((arm, condition), (other, under)) in COMPARED.items():
        own = [one for one in runs if one["arm"] == arm]
        others = [one for one in runs if one["arm"] == other]
        if by_start(own, condition, "agree") and by_start(others, under, "agree"):
            found[name] = gains(own, others, (condition, under), starts)
    return found


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("start*"))]


def by_start(
    runs: Sequence[dict[str, Any]], condition: str, measure: str
) -> dict[int, list[float]]:
    """Values in percent, of the runs that were judged under ``condition``."""
    values: dict[int, list[float]] = {}
    for one in runs:
        if condition in one["judged"]:
            values.setdefault(one["start"], []).append(100 * one["judged"][condition][measure])
    return values


def gains(
    runs: Sequence[dict[str, Any]],
    before: Sequence[dict[str, Any]],
    conditions: tuple[str, str],
    starts: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Of ``runs`` under the first condition over ``before`` under the second, paired by start. Of
    those run on another kind of machine, where ``starts`` are others, gains are compared."""
    found: dict[str, Any] = {}
    for measure in MEASURES:
        values, each = by_start(runs, conditions[0], measure), dict[int, list[float]]()
        for one in runs:
            others = alike(one, before, conditions[1])
            if not others or conditions[0] not in one["judged"]:
                continue
            difference = _mean([one], conditions[0], measure) - _mean(
                others, conditions[1], measure
            )
            if others[0]["machine"] != one["machine"]:
                difference -= _mean(alike(one, starts, conditions[0]), conditions[0], measure)
                difference += _mean(alike(others[0], starts, conditions[1]), conditions[1], measure)
            each.setdefault(one["start"], []).append(difference)
        means = [statistics.mean(own) for own in each.values()]
        level = statistics.mean(map(statistics.mean, values.values()))
        found[measure] = {**interval(means), "level": level, "by start": each}
    agree = found.pop("agree")
    count = sum(map(len, agree["by start"].values()))
    return {**agree, "starts": len(agree["by start"]), "runs": count, "others": found}


def alike(
    one: dict[str, Any], runs: Sequence[dict[str, Any]], condition: str
) -> list[dict[str, Any]]:
    """Of ``runs`` from the same start and judged under ``condition`` those of the same kind of
    machine, or all where there is none."""
    same = [r for r in runs if r["start"] == one["start"] and condition in r["judged"]]
    return [run for run in same if run["machine"] == one["machine"]] or same


def _mean(runs: Sequence[dict[str, Any]], condition: str, measure: str) -> float:
    return statistics.mean(100 * run["judged"][condition][measure] for run in runs)


def interval(means: Sequence[float]) -> dict[str, float]:
    """Mean, and 95 % intervals by Student's t and by a bootstrap over starts."""
    mean, count = statistics.mean(means), len(means)
    if count < 2:
        return {"gain": mean}
    half = _T[count - 2] * statistics.stdev(means) / math.sqrt(count)
    rng = random.Random(0)
    drawn = sorted(statistics.mean(rng.choices(means, k=count)) for _ in range(RESAMPLES))
    low, high = drawn[round(0.025 * RESAMPLES)], drawn[round(0.975 * RESAMPLES)]
    return {
        "gain": mean,
        "low": mean - half,
        "high": mean + half,
        "bootstrap low": low,
        "bootstrap high": high,
    }


def draw_gains(arms: Mapping[str, Any], file: Path) -> None:
    """Gain in agreement, picture and sentence: mean with its t interval, and each start."""
    from matplotlib import pyplot

    conditions = [name for name in CONDITIONS if any(name in arm for arm in arms.values())]
    widths = [1 + sum(name in arm for arm in arms.values()) for name in conditions]
    figure, rows = pyplot.subplots(
        *(1, len(conditions)),
        figsize=(1 + 0.65 * sum(widths), 5),
        width_ratios=widths,
        sharey=True,
        squeeze=False,
    )
    for axes, condition in zip(rows[0], conditions, strict=True):
        shown = [name for name in arms if condition in arms[name]]
        axes.axhline(0, color="gray", linewidth=1)
        for offset, measure in enumerate(("agree", "picture", "sentence")):
            for place, arm in enumerate(shown):
                found = arms[arm][condition]
                found = found if measure == "agree" else found["others"][measure]
                x, color = place + (offset - 1) * 0.25, f"C{offset}"
                half = [[found["gain"] - found["low"]], [found["high"] - found["gain"]]]
                label = measure if place == 0 else None
                axes.errorbar([x], [found["gain"]], half, fmt="o", color=color, label=label)
                each = [statistics.mean(own) for own in found["by start"].values()]
                axes.plot([x + 0.08] * len(each), each, ".", color=color, alpha=0.5)
        axes.set_xticks(range(len(shown)), shown, rotation=45, ha="right")
        axes.set_title(condition)
    rows[0][0].set_ylabel("points gained over the start\n(95 % interval over starts; dots: starts)")
    rows[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def draw_rewards(runs: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Mean reward of the rollouts by step: mean over starts with its t interval, smoothed."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for arm in ARMS[1:]:
        curves: dict[int, list[list[float]]] = {}
        for one in runs:
            if one["arm"] == arm:
                curve = smooth(one["curves"]["reward_mean"], SMOOTHED)
                curves.setdefault(one["start"], []).append(curve)
        if len(curves) < 2:
            continue
        means = [[statistics.mean(at) for at in zip(*own, strict=True)] for own in curves.values()]
        bands = [interval(at) for at in zip(*means, strict=True)]
        steps = range(1, len(bands) + 1)
        axes.plot(steps, [band["gain"] for band in bands], label=arm)
        lows, highs = ([band[end] for band in bands] for end in ("low", "high"))
        axes.fill_between(steps, lows, highs, alpha=0.2)
    axes.set(xlabel="training step", ylabel="mean reward of the rollouts")
    axes.set_title(
        f"Mean over starts with its 95 % interval, running mean over {SMOOTHED} steps\n"
        "(the arms' rewards differ: of the final pair, or of steps along the way)"
    )
    axes.legend()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def smooth(values: Sequence[float], window: int) -> list[float]:
    return [statistics.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    arms = summary(args.results)
    for name, found in (("summary", arms), ("comparisons", comparisons(args.results))):
        text = json.dumps(found, indent=1) + "\n"
        (args.results / f"{name}.json").write_text(text, encoding="utf-8")
        print(text)
    draw_gains(arms, args.results / "gains.png")
    draw_rewards(read(args.results), args.results / "rewards.png")


if __name__ == "__main__":
    main()

"""Preferences of a scripted picker on the toy world, learnt by DPO: an experiment of one command.

``python -m mmada_parallel.benchmarks.dpo`` asks the shipped checkpoint for drawings in batches,
whose colour the instruction leaves open. A picker who likes red takes the first answer that is red
in picture and words, if there is one among others; the picks are written and read as Pick Sample's
are. Adapters are trained on them with three seeds and judged on instructions that nothing was
picked for, and on ordinary tasks. Then the variance of the estimated margin is measured, with each
of the means against it. What is done is kept in ``--folder``; a second call goes on.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.demo import evaluate
from mmada_parallel.demo.checker import parse_codes
from mmada_parallel.demo.scenes import BACKGROUNDS, CONTENTS, SHAPES
from mmada_parallel.mmp_core import (
    Model,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.files import replacing
from mmada_parallel.training.cases import Case
from mmada_parallel.training.dpo.loss import Comparison, draw_masks
from mmada_parallel.training.dpo.preferences import open_preferences, save_preference
from mmada_parallel.training.dpo.run import DPORun
from mmada_parallel.training.dpo.settings import DPOSettings
from mmada_parallel.training.weights.policies import LoRA

SAMPLER = SamplerSettings(
    text_steps=8, image_steps=8, text_temperature=1.0, joint_guidance=0.0, order="text_first"
)
SEEDS = (1, 2, 3)
BATCH, ROUNDS = 8, 1
"""Answers that the picker chooses among, and how often each instruction is asked."""
RANK, LIKED = 16, "red"
ANSWERS, ORDINARY = 6, 24
"""To each instruction, to judge by, and ordinary tasks."""
REPEATS, COMPARED = 6, 3
"""Estimates of each margin, and comparisons, to measure the variance by."""
ARMS = ("all masks independent", "policy and reference alike", "answers alike, too", "paired, too")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/dpo"))
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"picker": f"likes {LIKED}", "steps": args.steps, "batch": BATCH}
    model = load_checkpoint("demo", dtype=torch.float32)
    figures["picks"] = pick(model, args.folder / "picks")
    figures["start"] = judged(model, args.folder / "start.json", seed=0)
    figures["trained"] = {}
    for seed in SEEDS:
        policy = train(model, args.folder, seed, args.steps, args.learning_rate)
        figures["trained"][seed] = judged(model, args.folder / f"seed {seed}.json", seed=seed)
        if seed == SEEDS[0]:
            figures["variance"] = variances(model, policy, args.folder)
        model = load_checkpoint("demo", dtype=torch.float32)
        figures["summary"] = summary(figures)
        write(args.out or args.folder / "dpo.json", figures)
    print(json.dumps(figures["summary"], indent=1))


def instructions(held_out: bool) -> list[str]:
    """A quarter of all pairs of shape and background is held out."""
    pairs = product(enumerate(SHAPES), enumerate(BACKGROUNDS))
    return [
        f"draw a {shape} on {background}"
        for (i, shape), (j, background) in pairs
        if ((i + j) % 4 == 0) == held_out
    ]


def answered(model: Model, instruction: str, count: int, seed: int) -> tuple[Any, TokenState]:
    prompt = encode_instruction(model, instruction, batch=count)
    seeds = [seed * 1000 + number for number in range(count)]
    return prompt, denoise(model, prompt, replace(SAMPLER, seed=seeds), record=0).final


def likings(model: Model, answers: TokenState) -> list[tuple[bool, bool]]:
    """Of each answer: whether picture and words are red, and whether they say one colour."""
    result = []
    for picture, text in zip(
        decode_image(model, answers), decode_text(model, answers), strict=True
    ):
        codes = parse_codes(picture, answers.grid) % len(CONTENTS)
        things = [CONTENTS[code] for code in codes.flatten()]
        colours = {thing[1] for thing in things if thing}
        said = text.split()[1:2]
        result.append((colours == {LIKED} and said == [LIKED], [*colours] == said))
    return result


def pick(model: Model, folder: Path) -> dict[str, int]:
    """Ask, and let the picker choose; how many batches there were, and picks."""
    asked = list(product(range(ROUNDS), instructions(held_out=False)))
    done = folder.with_suffix(".json")
    if not done.exists():
        for number, (_, instruction) in enumerate(asked):
            prompt, answers = answered(model, instruction, BATCH, 10_000 + number)
            liked = [red for red, _ in likings(model, answers)]
            if any(liked) and not all(liked):
                save_preference(folder, model, prompt, answers, liked.index(True))
        write(done, len(asked))
    preferences = open_preferences(folder)
    return {
        "batches": len(asked),
        "picks": len(preferences.files),
        "comparisons": len(preferences.cases(model)),
    }


def train(model: Model, folder: Path, seed: int, steps: int, rate: float) -> LoRA:
    """The adapter, which stays attached to ``model``."""
    settings = DPOSettings(
        steps=steps,
        learning_rate=rate,
        schedule="linear",
        warmup_steps=2,
        masks=4,
        batch_size=4,
        micro_batch=16,
        gradient_checkpointing=False,
        checkpoint_every=10,
        seed=seed,
    )
    policy = LoRA(model.transformer, rank=RANK, seed=seed)
    cases = open_preferences(folder / "picks").cases(model)
    run = DPORun(model, cases, settings, folder / f"run {seed}", policy=policy)
    run.resume()
    run.train(lambda step, line: print(seed, step, json.dumps(line), flush=True))
    return policy


def judged(model: Model, file: Path, seed: int) -> dict[str, Any]:
    """Shares of answers to held-out instructions, and measures of ordinary tasks."""
    if not file.exists():
        by_instruction = []
        for number, instruction in enumerate(instructions(held_out=True)):
            _, answers = answered(model, instruction, ANSWERS, (seed + 1) * 100_000 + number)
            by_instruction.append(likings(model, answers))
        names = (LIKED, "one colour in picture and words")
        shares = {
            name: [
                statistics.mean(float(one[place]) for one in answers) for answers in by_instruction
            ]
            for place, name in enumerate(names)
        }
        ordinary = evaluate.evaluate(model, cases=ORDINARY, seed=seed * 10**6, settings=SAMPLER)
        measures = ("picture", "sentence", "agree", "kept")
        write(
            file,
            {
                **{name: statistics.mean(values) for name, values in shares.items()},
                "interval": {
                    name: 1.96 * statistics.stdev(values) / math.sqrt(len(values))
                    for name, values in shares.items()
                },
                "ordinary tasks": {name: ordinary[name] for name in measures},
                "ordinary interval": {name: ordinary["interval"][name] for name in measures},
            },
        )
    return json.loads(file.read_text())


@torch.no_grad()
def variances(model: Model, policy: LoRA, folder: Path) -> dict[str, float]:
    """The mean variance of an estimated margin of the policy that is attached, by how masks are
    drawn, for the number of masks that is the default."""
    file = folder / "variance.json"
    if not file.exists():
        cases = open_preferences(folder / "picks").cases(model)
        cases = cases[:: max(1, len(cases) // COMPARED)][:COMPARED]
        rng = torch.Generator().manual_seed(0)
        write(
            file,
            {
                arm: statistics.mean(
                    statistics.variance(
                        margin(model, policy, case, arm, rng) for _ in range(REPEATS)
                    )
                    for case in cases
                )
                for arm in ARMS
            },
        )
    return json.loads(file.read_text())


def margin(model: Model, policy: LoRA, case: Case, arm: str, rng: torch.Generator) -> float:
    """One estimate of how much more the policy than the reference prefers the picked answer."""
    place, count = ARMS.index(arm), DPOSettings().masks

    def compared(masks: Any) -> Comparison:
        other = masks if place >= 2 else draw()
        return Comparison.of(case, masks, other)

    def draw() -> Any:
        return draw_masks(case.prompt.initial, count, rng, paired=place >= 3)

    first = compared(draw())
    second = first if place else compared(draw())
    value = float(first.log_ratios(model).sum())
    with policy.reference():
        return value - float(second.log_ratios(model).sum())


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """Over the seeds: means, with the 95 % interval of Student's t where there are three."""
    trained, start = list(figures["trained"].values()), figures["start"]
    shares = [one[LIKED] for one in trained]
    result = {f"{LIKED} before": start[LIKED], f"{LIKED} after": statistics.mean(shares)}
    if len(shares) == len(SEEDS):
        result["interval over seeds"] = 4.303 * statistics.stdev(shares) / math.sqrt(len(shares))
    for name in ("picture", "sentence", "agree", "kept"):
        after = statistics.mean(one["ordinary tasks"][name] for one in trained)
        result[f"ordinary {name}, before and after"] = [start["ordinary tasks"][name], after]
    return result


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as path:
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

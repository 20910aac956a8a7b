"""The toy checkpoint of Lumina-DiMOO's family: the demo's, trained on to answer with a picture or
with a text. ``python -m mmada_parallel.benchmarks.lumina_toy`` makes it again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..demo import world
from ..demo.dataset import CHANGED_WEIGHT, text_ids
from ..demo.kinds import EDITS, Count
from ..demo.scenes import BACKGROUNDS, Scene, description, random_scene
from ..demo.train import CPU_RECIPE, save_tensors, short_attention
from ..mmp_core import SamplerSettings, decode_text, denoise
from ..mmp_core.checkpoint.load import DEMO, DEMO_LUMINA, Model, load_checkpoint
from ..mmp_core.checkpoint.source import TOKENIZER_FILES
from ..mmp_core.state import TokenState
from ..mmp_core.variants.base import Layout
from ..mmp_core.variants.strangers import FAMILY_KEY
from ..training.cases import Case, EndlessCases
from ..training.sft.run import SFTRun
from ..training.weights.policies import FullWeights

TEXT_LENGTH = 64
DESCRIPTIONS = ("describe the picture", "what is there", "all objects")
_TASKS = ("edit", "edit", "generate", "style", "describe", "describe", "describe")
"""Of the first 470 steps of the checkpoint that ships; the others had three times style, and twice
edit and describe, in eight."""
_PLAIN: dict[str, Any] = {
    "joint_guidance": 0.0,
    "image_temperature": 0.0,
    "text_steps": 16,
    "block_length": 16,
}
RECIPE = replace(
    CPU_RECIPE,
    steps=900,
    batch_size=40,
    micro_batch=40,
    window=8,
    learning_rate=4e-4,
    decay_steps=450,
    warmup_steps=30,
    ema=0.99,
    checkpoint_every=100,
)


@dataclass(frozen=True)
class LuminaTask:
    """``before``: the first picture, ``reference``: the second. The answer: ``after``, or one of
    ``others`` that are as right; or ``sentence``."""

    task: str
    instruction: str
    before: Scene | None = None
    reference: Scene | None = None
    after: Scene | None = None
    sentence: str = ""
    others: tuple[Scene, ...] = ()


def lumina_task(number: int, grid: tuple[int, int], kind: str) -> LuminaTask:
    """The task numbered ``number`` of a ``kind``, the same on every machine."""
    rng = random.Random(f"lumina {kind} {number}")
    if kind in ("edit", "generate"):
        made = world.task(number, grid=grid, kinds=("generate",) if kind == "generate" else EDITS)
        right = {"after": made.after, "others": made.others}
        return LuminaTask(kind, made.instruction, made.before, **right)
    scene = random_scene(rng, grid)
    if kind == "style":
        reference = replace(random_scene(rng, grid), background=rng.choice(BACKGROUNDS))
        after = replace(scene, background=reference.background)
        return LuminaTask(kind, "", scene, reference, after)
    if rng.random() < 0.25:
        parts = [part for item in scene.objects().values() for part in item]
        part = rng.choice(sorted(parts))
        words = Count.groups[part]
        return LuminaTask(
            kind, f"count all {words}", scene, sentence=f"{parts.count(part)} {words} ."
        )
    sentence = f"{description(scene, scene.objects())} ."
    return LuminaTask(kind, rng.choice(DESCRIPTIONS), scene, sentence=sentence)


def to_case(number: int, task: LuminaTask, layout: Layout) -> Case:
    before, reference, after = (_codes(s) for s in (task.before, task.reference, task.after))
    if after is None:
        target = TokenState(
            text_ids(layout, task.sentence, TEXT_LENGTH), torch.zeros(1, 0, 0).long()
        )
    else:
        target = TokenState(torch.zeros(1, 0, dtype=torch.int64), after)
    blank = TokenState.masked(1, target.text.shape[1], target.grid)
    weight = None
    if after is not None and task.task != "describe":
        changed = torch.zeros_like(after, dtype=torch.bool) if before is None else after != before
        weight = torch.where(changed, CHANGED_WEIGHT, 1.0)
    prompt = layout.encode_task(task.task, task.instruction, before, reference, blank)
    name = f"task {number} ({task.task})"
    return Case(name, prompt, task.instruction, None, target, task, weight)


def _codes(scene: Scene | None) -> Tensor | None:
    return None if scene is None else torch.tensor([scene.codes()])


class LuminaCases(EndlessCases):
    """Case ``i`` is task ``i``; ``alike`` in a row share grid and task."""

    def __init__(self, layout: Layout, alike: int):
        self.layout, self.alike = layout, alike
        self.fingerprint = f"toy world of Lumina-DiMOO, {alike} alike"

    def __getitem__(self, number: int) -> Case:
        return to_case(number, self.task(number), self.layout)

    def task(self, number: int) -> LuminaTask:
        group = number // self.alike
        kind = random.Random(f"task {group}").choice(_TASKS)
        chooser = random.Random(f"grid {group}")
        grid = world.GRIDS[0] if chooser.random() < 0.5 else chooser.choice(world.GRIDS[1:])
        return lumina_task(number, grid, kind)


def held_out(count: int, kind: str, first: int = 10**9) -> Iterator[LuminaTask]:
    """Tasks that were never trained on."""
    for number in range(first, first + count):
        yield lumina_task(number, world.GRIDS[number % len(world.GRIDS)], kind)


def share_right(
    model: Model, tasks: Sequence[LuminaTask], settings: SamplerSettings | None = None
) -> float:
    """Share of ``tasks`` that are answered rightly: every cell of the picture, every word of the
    text. ``settings``: by default the authors' for the task."""
    right = 0
    for number, task in enumerate(tasks):
        case = to_case(number, task, model.layout)
        own = settings or SamplerSettings(**model.variant.settings_for(task.task))
        final = denoise(model, case.prompt, replace(own, seed=number), record=0).final
        if task.after is None:
            right += decode_text(model, final)[0].strip() == task.sentence
        else:
            scenes = [scene.codes() for scene in (task.after, *task.others)]
            right += final.image[0].tolist() in scenes
    return right / len(tasks)


def judged(model: Model, count: int) -> dict[str, dict[str, float]]:
    """:func:`share_right` of ``count`` held-out tasks of each kind, as recommended and without
    guidance at the likeliest tokens; describing a scene and counting in it are told apart."""
    tasks = {kind: list(held_out(count, kind)) for kind in ("style", "generate", "edit")}
    texts = list(held_out(8 * count, "describe"))
    for name, counts in (("count", True), ("describe", False)):
        chosen = (task for task in texts if task.instruction.startswith("count") == counts)
        tasks[name] = list(islice(chosen, count))
    settings = {"recommended": None, "no guidance": SamplerSettings(**_PLAIN)}
    return {
        kind: {name: share_right(model, chosen, own) for name, own in settings.items()}
        for kind, chosen in tasks.items()
    }


def write_checkpoint(out: Path, weights: dict[str, Tensor], steps: int) -> None:
    """``weights`` in bf16, beside the demo's image tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (DEMO / name).is_file():
            shutil.copyfile(DEMO / name, out / name)
    config = json.loads((DEMO / "config.json").read_text())
    config |= {FAMILY_KEY: "D", "default_text_length": TEXT_LENGTH}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    halved = {name: weight.bfloat16().cpu() for name, weight in weights.items()}
    save_tensors(out / "model.safetensors", halved, {"sft_steps": str(steps)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/lumina"), help="working folder")
    parser.add_argument("--out", type=Path, default=DEMO_LUMINA)
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--start", default="demo", help="checkpoint to train further")
    parser.add_argument("--judge", type=int, metavar="N", help="judge it on N tasks of each kind")
    args = parser.parse_args()
    if args.judge:
        model = load_checkpoint(args.out, dtype=torch.float32)
        print(json.dumps({"tasks": args.judge, "right": judged(model, args.judge)}, indent=1))
        return
    settings = replace(RECIPE, steps=args.steps, decay_steps=args.steps // 2)
    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary) / "start"
        model = load_checkpoint(args.start, dtype=torch.float32)
        write_checkpoint(start, model.transformer.state_dict(), 0)
        model = load_checkpoint(
            start,
            dtype=torch.float32,
            attention=short_attention,
            image_tokenizer_path=DEMO / "vqvae",
        )
    cases = LuminaCases(model.layout, settings.window * settings.batch_size // 8)
    run = SFTRun(model, cases, settings, args.folder, policy=FullWeights(model.transformer))
    if run.resume():
        print(f"resuming after step {run.step}", flush=True)
    run.train(lambda step, line: print(json.dumps(line), flush=True))
    with run.averaged():
        write_checkpoint(args.out, run.policy.state_dict(), run.step)


if __name__ == "__main__":
    main()

"""Thumbnails of the workflows that train, and pictures of help pages, from runs as they ship.

``python -m mmada_parallel.benchmarks.figures_training [votes|sft|picks|pararl …]`` writes six of
``workflows/*.jpg`` and three of ``web/docs/pictures/*.webp``.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from mmada_parallel.benchmarks import dpo
from mmada_parallel.benchmarks.figures import ROOT, held_out_task
from mmada_parallel.benchmarks.help_pictures import column, result, save, two_to_choose_from
from mmada_parallel.benchmarks.thumbnails import Panel, square
from mmada_parallel.demo import new_word
from mmada_parallel.demo.checker import check
from mmada_parallel.demo.evaluate import prompt_of
from mmada_parallel.demo.items import world_dataset
from mmada_parallel.demo.render import render
from mmada_parallel.demo.reward import CheckerReward
from mmada_parallel.mmp_core import (
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.training.data.dataset import tokenised
from mmada_parallel.training.dpo.preferences import save_preference
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.settings import ROLLOUT_SAMPLER, ParaRLSettings
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.sft.settings import SFTSettings
from mmada_parallel.training.weights.policies import LoRA
from PIL import Image, ImageDraw, ImageFont

_FEW_STEPS = replace(ROLLOUT_SAMPLER, text_steps=2, image_steps=2, text_temperature=2.5)
_SETTINGS = ParaRLSettings(
    steps=16,
    learning_rate=4e-3,
    warmup_steps=2,
    groups=4,
    scored_steps=2,
    micro_batch=32,
    gradient_checkpointing=False,
    sampler=_FEW_STEPS,
)
_ITEMS, _RANK, _SHOWN = 64, 8, 8
_SCENE = held_out_task("move", 3)
_WORDS, _BEFORE = "add a red snow at row 2 column 2", held_out_task("move", 0).source


def answered(model: Model) -> list[Panel]:
    """Answers to one held-out task in as few steps as in training."""
    settings = replace(_FEW_STEPS, joint_guidance=0.0)
    final = denoise(model, prompt_of(model, _SCENE, batch=_SHOWN), settings, record=0).final
    pairs = zip(decode_image(model, final), decode_text(model, final), strict=True)
    return [Panel(picture, text) for picture, text in pairs]


def agrees(panel: Panel) -> bool:
    return check(_SCENE, panel.picture, panel.words).agree


def curve(rewards: list[float]) -> Image.Image:
    """A line that is seen in a thumbnail, with its ends written on."""
    width, height, edge = 440, 300, 50
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(23)
    low, high = min(rewards), max(rewards)
    points = [
        (
            edge + (width - 2 * edge) * i / (len(rewards) - 1),
            height - edge - (height - 2 * edge) * (reward - low) / (high - low),
        )
        for i, reward in enumerate(rewards)
    ]
    for axis in ((edge, edge, edge, height - edge), (edge, height - edge, width, height - edge)):
        draw.line(axis, fill="#b4b4bc", width=2)
    draw.line(points, fill="#1f77b4", width=6, joint="curve")
    draw.text((10, 10), f"mean reward, {low:.2f} to {high:.2f}", fill="#666666", font=font)
    draw.text((edge, height - 38), f"step 1 to {len(rewards)}", fill="#666666", font=font)
    return picture


def reinforced(model: Model) -> None:
    """ParaRL: the reward over the steps, and one answer that it put right."""
    before = answered(model)
    cases = tokenised(world_dataset(_ITEMS), model)
    with tempfile.TemporaryDirectory() as folder, LoRA(model.transformer, rank=_RANK) as policy:
        run = ParaRLRun(model, cases, CheckerReward(), _SETTINGS, folder, policy=policy)
        run.train()
        rewards = [line["reward_mean"] for line in run.folder.lines()]
        after = answered(model)
    print("agree before and after:", *(sum(map(agrees, each)) for each in (before, after)))
    wrong, right = next(
        pair for pair in zip(before, after, strict=True) if [*map(agrees, pair)] == [False, True]
    )
    save("pararl", curve(rewards))
    save("before-after", column(("before", wrong), ("after", right)))
    first, then = (panel.words.split() for panel in (wrong, right))
    same = next(i for i, pair in enumerate(zip(first, then, strict=False)) if pair[0] != pair[1])
    first, then = (" ".join(words[same - 1 :]) for words in (first, then))
    thumbnail("Before and after", square([wrong, right], f"before: “{first}” after: “{then}”"))
    thumbnail(
        "Finetune by ParaRL on a folder", square([Panel(curve(rewards))], "reward by training step")
    )


def taught(model: Model) -> None:
    """SFT: a word of another meaning, as *Teach it something new* teaches it."""
    cases = tokenised(world_dataset(60, task=new_word.task), model, need_target=True)
    prompt = encode_instruction(model, _WORDS, render(_BEFORE))
    settings = SFTSettings(steps=60, learning_rate=1e-3)
    without = result(model, prompt)
    with tempfile.TemporaryDirectory() as folder, LoRA(model.transformer, rank=16) as policy:
        SFTRun(model, cases, settings, folder, policy=policy).train()
        adapted = result(model, prompt)
    asked = ("picture", Panel(render(_BEFORE), f"“{_WORDS}”"))
    save("adapter", column(asked, ("without adapter", without), ("with it", adapted)))
    thumbnail("Teach it something new", square([without, adapted], f"“{_WORDS}”"))


def voted(_: Model) -> None:
    _, *pair = two_to_choose_from()
    thumbnail("ParaRL with your votes", square(pair, "which one do you like better?"))


def four(model: Model, instruction: str, seed: int) -> list[Panel]:
    """Answers to ``instruction``; none where words and picture of one do not agree."""
    _, answers = dpo.answered(model, instruction, 4, seed)
    if not all(agree for _, agree in dpo.likings(model, answers)):
        return []
    pairs = zip(decode_image(model, answers), decode_text(model, answers), strict=True)
    return [Panel(picture, text) for picture, text in pairs]


def together(panels: list[Panel]) -> Panel:
    """Four pictures as one."""
    sheet = Image.new("RGB", (260, 260), "white")
    for number, panel in enumerate(panels):
        assert panel.picture is not None
        place = number % 2 * 132, number // 2 * 132
        sheet.paste(panel.picture.convert("RGB").resize((128, 128)), place)
    return Panel(sheet)


def picked(model: Model) -> None:
    """DPO: drawings in red are picked, as *Pick what you like* does, and trained on."""
    asked = product(dpo.instructions(held_out=True), range(1, 4))
    before = {each: panels for each in asked if (panels := four(model, *each))}
    colours = {each: {p.words.split()[1] for p in panels} for each, panels in before.items()}
    varied = max(before, key=lambda each: len(colours[each]))
    thumbnail("Pick what you like", square(before[varied], "which one of four do you like best?"))
    with tempfile.TemporaryDirectory() as folder:
        for number, instruction in enumerate(dpo.instructions(held_out=False)[:8]):
            prompt, answers = dpo.answered(model, instruction, 4, number)
            liked = [red for red, _ in dpo.likings(model, answers)]
            if any(liked) and not all(liked):
                place = Path(folder) / "picks"
                save_preference(place, model, prompt, answers, liked.index(True))
        with dpo.train(model, Path(folder), seed=1, steps=12, rate=1e-3):
            after = {each: panels for each in before if (panels := four(model, *each))}
    shown = max(after, key=lambda each: len(colours[each]))
    pair = [together(before[shown]), together(after[shown])]
    thumbnail("Train on your picks", square(pair, "before, and after red ones were picked"))


def thumbnail(name: str, sheet: Image.Image) -> None:
    sheet.save(ROOT / "workflows" / f"{name}.jpg", quality=80, optimize=True)


def main() -> None:
    model = load_checkpoint("demo", dtype=torch.float32)
    drawn = {"votes": voted, "sft": taught, "picks": picked, "pararl": reinforced}
    for name in sys.argv[1:] or drawn:
        drawn[name](model)


if __name__ == "__main__":
    main()

"""Thumbnails of the workflows that train, from the run that they ship.

``python -m mmada_parallel.benchmarks.figures_training`` writes two of ``workflows/*.jpg``.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace

import torch
from mmada_parallel.benchmarks.figures import ROOT, held_out_task, panel, side_by_side
from mmada_parallel.demo.evaluate import prompt_of
from mmada_parallel.demo.items import world_dataset
from mmada_parallel.demo.reward import CheckerReward
from mmada_parallel.mmp_core import (
    SamplerSettings,
    decode_image,
    decode_text,
    denoise,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.load import Model
from mmada_parallel.training.data.dataset import tokenised
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.settings import ROLLOUT_SAMPLER, ParaRLSettings
from mmada_parallel.training.weights.policies import LoRA
from mmada_parallel.views.examples import Answer, answers_sheet
from mmada_parallel.views.plot import line_plot
from PIL import Image

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
_ITEMS, _RANK, _SHOWN = 64, 8, 4
_SCENE = held_out_task("move", 3)


def answered(model: Model, title: str) -> Image.Image:
    """Answers to one held-out task in as few steps as in training."""
    settings = SamplerSettings(
        text_steps=2,
        image_steps=2,
        text_temperature=_FEW_STEPS.text_temperature,
        joint_guidance=0.0,
    )
    final = denoise(model, prompt_of(model, _SCENE, batch=_SHOWN), settings, record=0).final
    pairs = zip(decode_image(model, final), decode_text(model, final), strict=True)
    return side_by_side([panel(picture, title, text) for picture, text in pairs])


def stacked(pictures: list[Image.Image]) -> Image.Image:
    sheet = Image.new(
        "RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white"
    )
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def beside_each_other(left: Image.Image, right: Image.Image) -> Image.Image:
    """Both at the height of ``left``."""
    width = round(right.width * left.height / right.height)
    sheet = Image.new("RGB", (left.width + width, left.height), "white")
    sheet.paste(left)
    sheet.paste(right.resize((width, left.height)), (left.width, 0))
    return sheet


def main() -> None:
    model = load_checkpoint("demo", dtype=torch.float32)
    before = answered(model, "before")
    cases = tokenised(world_dataset(_ITEMS), model)
    with tempfile.TemporaryDirectory() as folder, LoRA(model.transformer, rank=_RANK) as policy:
        run = ParaRLRun(model, cases, CheckerReward(), _SETTINGS, folder, policy=policy)
        run.train()
        rewards = torch.tensor([[line["reward_mean"]] for line in run.folder.lines()])
        curve = line_plot(
            rewards, range(1, len(rewards) + 1), x_label="step", y_label="mean reward"
        )
        pairs = run.samples(_SHOWN)
        samples = answers_sheet(
            [Answer(p.case.instruction, p.text, p.picture) for p in pairs], side=160
        )
        after = answered(model, "after")
    thumbnails = {
        "Finetune by ParaRL on a folder": beside_each_other(samples, curve),
        "Before and after": stacked([before, after]),
    }
    for name, sheet in thumbnails.items():
        sheet.save(ROOT / "workflows" / f"{name}.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    main()

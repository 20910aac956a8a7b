"""Compare Adapters."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.v0_0_2 import io
from PIL import Image

from ..mmp_core import InputError, Prompt, SamplerSettings, TokenState, decode_image, decode_text
from ..mmp_core.batching import denoise_in_batches
from ..mmp_core.checkpoint.adapters import read_adapter
from ..mmp_core.options import options_of
from ..training.loop.keeping import BEST, kept_adapters, named_adapters
from ..training.weights.adapter_files import stored_tensors
from ..views.examples import SIDE, Answer, answers_sheet
from ..views.trajectory import frame_pixels
from . import host
from .host import folders, training_folders
from .pictures import shown, to_pixels
from .types import LoraModel, Model, Schema, Tokens
from .types import Prompt as PromptType
from .widgets import MOST_SEED, between, widget

_SETTINGS = ("text_steps", "image_steps", "joint_guidance")
_MOST_PIXELS = 500_000_000
"""Of the sheet."""


class CompareAdapters(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        options = options_of(SamplerSettings)
        return Schema(
            node_id="MMaDAParallelCompareAdapters",
            display_name="Compare Adapters (MMaDA)",
            category="MMaDA-Parallel/checkpoints",
            description="Answers one prompt with each adapter that a training run has kept, and "
            "once without an adapter, so that you can choose one by eye.",
            search_aliases=["mmada", "lora", "checkpoint", "best step", "xy plot", "finetune"],
            inputs=[
                Model.Input("model", tooltip="The model that the run was trained on."),
                PromptType.Input("prompt", tooltip="From Encode Instruction."),
                io.Combo.Input(
                    "run",
                    options=list(training_folders.runs_with_adapters()) or [folders.NO_ADAPTER],
                    tooltip="A run of the training nodes that kept adapters (keep_every), the "
                    "newest first. Press R after a run.",
                ),
                io.Int.Input(
                    "seed", **between(0, MOST_SEED, default=0), tooltip="The same for all answers."
                ),
                *(widget(options[name]) for name in _SETTINGS),
                io.Int.Input(
                    "step",
                    **between(0, 100_000, default=0),
                    tooltip="The adapter to hand on to Apply LoRA and Save LoRA: the one after "
                    "this many steps. 0: the best one or, if there is none, the newest.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="sheet",
                    tooltip="All answers in one picture: first without an adapter, then by step.",
                ),
                Tokens.Output(display_name="tokens", tooltip="The same answers as a batch."),
                LoraModel.Output(
                    display_name="lora", tooltip="The adapter chosen with step, for Apply LoRA."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, run: str, **_):
        return folders.fingerprint(lambda: [training_folders.run_with_adapters(run)])

    @classmethod
    def execute(
        cls,
        model: host.HostedModel,
        prompt: Prompt,
        run: str,
        seed: int,
        step: int,
        **choices: Any,
    ) -> io.NodeOutput:
        if not min(prompt.initial.grid):
            raise InputError("The task is answered with text alone: choose one with a picture.")
        folder = training_folders.run_with_adapters(run)
        files = kept_adapters(folder)
        best = folder / BEST
        chosen = files.get(step) if step else best if best.is_file() else list(files.values())[-1]
        if chosen is None:
            raise InputError(
                f"{run} has no adapter of step {step}, only of {', '.join(map(str, files))}."
            )
        answers = len(files) + 1
        pixels = answers * (frame_pixels(prompt.initial.grid, SIDE) + SIDE**2)
        if pixels > _MOST_PIXELS:
            raise InputError(
                f"{answers} answers have {pixels / 1e6:.0f} million pixels; expected at most "
                f"{_MOST_PIXELS / 1e6:.0f} million: move adapters out of {folder}, or choose a "
                "picture that is less long."
            )
        settings = SamplerSettings(seed=seed, **choices)
        progress = host.Progress(cls.hidden.unique_id)
        found: list[tuple[str, TokenState]] = []
        for number, (name, file) in enumerate([("no adapter", None), *named_adapters(folder)]):
            adapted = model
            if file is not None:
                state, about = read_adapter(file, host.stop_if_interrupted)
                adapted = host.with_adapter(model, state, about, file.name, 1.0)
            host.stop_if_interrupted()
            trajectory = denoise_in_batches(
                adapted.model,
                prompt,
                settings,
                budget=adapted.memory_budget(prompt, previews=False),
                callback=lambda *_: host.stop_if_interrupted(),
                record=0,
                picture=adapted.picture_bytes(prompt.initial.grid, previews=False),
            )
            found.append((name, trajectory.final))
            progress.show(number + 1, answers)
        model.prepare_decoding(prompt.initial.grid)
        given = [
            Answer(name, decode_text(model.model, tokens)[0], _picture(model, tokens))
            for name, tokens in host.interruptible(found)
        ]
        pixels = to_pixels([answers_sheet(given)])
        tokens = TokenState(
            torch.cat([t.text for _, t in found]), torch.cat([t.image for _, t in found])
        )
        text = "\n".join(f"{answer.instruction}: {answer.text}" for answer in given)
        lora = stored_tensors(chosen)
        return io.NodeOutput(
            host.to_intermediate(pixels), tokens, lora, ui=shown(pixels, text, cls)
        )


def _picture(model: host.HostedModel, tokens: TokenState) -> Image.Image:
    return decode_image(model.model, tokens[:1])[0]

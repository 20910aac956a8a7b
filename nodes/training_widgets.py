"""The widgets that both training nodes have, in the order of ComfyUI's own trainer."""

from comfy_api.latest import io

from ..mmp_core.model.config import LAYER_SETS
from ..training.loop.settings import RunSettings
from .host import folders
from .types import Dataset, LoraModel, LossMap, Model


def model_and_dataset() -> list[io.Input]:
    return [
        Model.Input(
            "model",
            tooltip="What to train on, quantised or not: its own weights stay as they are. With "
            "Apply LoRA before it, the new adapter is trained on top of that one.",
        ),
        Dataset.Input("dataset", tooltip="From Load Edit Dataset."),
    ]


def trainer_widgets(batch: str, batch_size: int, steps: int) -> list[io.Input]:
    """``batch``: what a step works on."""
    return [
        io.Int.Input(
            "batch_size",
            default=batch_size,
            min=1,
            max=10_000,
            tooltip=f"{batch} per step. More: steadier, and as much slower.",
        ),
        io.Int.Input(
            "micro_batch",
            default=0,
            min=0,
            max=4096,
            tooltip="Sequences at a time; gradients are accumulated. Changes memory and speed, not "
            "the result. 0: as many as there is memory for.",
        ),
        io.Int.Input(
            "steps",
            default=steps,
            min=1,
            max=100_000,
            tooltip="Updates in all. To train on after a run: raise it and turn on resume.",
        ),
        io.Float.Input(
            "learning_rate",
            default=RunSettings.learning_rate,
            min=1e-7,
            max=1.0,
            step=1e-7,
            tooltip="How far a step goes, once it has risen over the first ones.",
        ),
        io.Int.Input(
            "rank",
            default=16,
            min=1,
            max=256,
            tooltip="Of the adapter. Higher: it can learn more, and needs more memory.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="Of all that is random. The same seed gives the same adapter again, on the "
            "same kind of device.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=True,
            tooltip="Compute each block again in the backward instead of keeping it: needed for "
            "large models. Off: faster, and much more memory.",
        ),
        io.Combo.Input(
            "existing_lora",
            options=folders.adapter_names(),
            default=folders.NO_ADAPTER,
            tooltip="An adapter in models/loras to train further; rank and layers are then its "
            "own. none: a new one.",
        ),
    ]


def run_widgets(name: str, preview_every: int) -> list[io.Input]:
    return [
        io.String.Input(
            "run_name",
            default=name,
            tooltip="The run is kept in output/mmada_parallel/training/, in a folder of this name "
            "and a number.",
        ),
        io.Boolean.Input(
            "resume",
            default=False,
            tooltip="Go on with the newest run of this name, after an interruption or with more "
            "steps. If there is none, or if this is off, a new run begins.",
        ),
        io.Int.Input(
            "preview_every",
            default=preview_every,
            min=0,
            max=10_000,
            tooltip="Show samples on the node every so many steps. 0: none.",
        ),
    ]


def advanced_widgets() -> list[io.Input]:
    return [
        io.Combo.Input(
            "layers",
            options=list(LAYER_SETS),
            default="all",
            advanced=True,
            tooltip="Which linear layers of the blocks get an adapter.",
        ),
        io.Combo.Input(
            "schedule",
            options=["constant", "linear"],
            default=RunSettings.schedule,
            advanced=True,
            tooltip="Hold the learning rate after its rise, or let it fall to 0 at the last step.",
        ),
        io.Int.Input(
            "warmup_steps",
            default=RunSettings.warmup_steps,
            min=0,
            max=10_000,
            advanced=True,
            tooltip="Steps over which the learning rate rises.",
        ),
        io.Int.Input(
            "checkpoint_every",
            default=10,
            min=1,
            max=10_000,
            advanced=True,
            tooltip="Steps between saved states. An interruption saves one, too; a crash loses "
            "what came after the last.",
        ),
        io.Int.Input(
            "text_length",
            default=0,
            min=0,
            max=4096,
            advanced=True,
            tooltip="Tokens that the text may have. 0: the checkpoint's own number. Fewer: faster, "
            "less memory.",
        ),
    ]


def outputs(curve: str) -> list[io.Output]:
    return [
        LoraModel.Output(
            display_name="lora", tooltip="The trained adapter, for Apply LoRA and Save LoRA."
        ),
        LossMap.Output(display_name="loss_map", tooltip="The loss of each step, for Plot Loss."),
        io.Int.Output(display_name="steps", tooltip="Steps done in all, for Save LoRA."),
        io.Image.Output(display_name="curve", tooltip=curve),
    ]

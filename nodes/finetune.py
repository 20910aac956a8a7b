"""ParaRL Finetune, SFT Finetune and Preference Finetune."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.v0_0_2 import io

from ..mmp_core import InputError
from ..mmp_core.options import Option, options_of
from ..training.data.dataset import EditDataset
from ..training.dpo.preferences import open_preferences
from ..training.dpo.settings import DPOSettings
from ..training.loop.settings import RunSettings
from ..training.pararl.settings import ROLLOUT_SAMPLER, ParaRLSettings
from ..training.rewards.registry import widget_values
from ..training.sft.settings import SFTSettings
from ..training.weights.settings import AdapterSettings
from .host import HostedModel, folders, training_folders
from .training_recipes import DPO, SFT, ParaRL, clips_of
from .training_run import TrainingInputs, begun_with, train
from .types import Dataset, LoraModel, LossMap, Model, Schema
from .widgets import between, widget

_STEERING = (
    "held_out",
    "evaluate_every",
    "guard_rise",
    "patience",
    "keep_every",
    "keep_last",
    "samples_every",
    "ema",
    "optimizer",
    "decay_steps",
)
_ROLLOUTS = ("text_steps", "image_steps", "text_temperature", "image_temperature")


class ParaRLFinetune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        options, rollouts = options_of(ParaRLSettings), options_of(ROLLOUT_SAMPLER)
        reward = io.Combo.Input(
            "reward",
            options=widget_values(folders.clips()),
            default="checker (toy world)",
            tooltip="What an answer is rewarded for. clip: how well text and picture agree, "
            "measured by a CLIP model; preference: how well people would like the picture, by a "
            "model such as PickScore or HPS. Put these in the format of open_clip (needs the "
            "Python package open_clip_torch) or transformers, each in a folder of its own, into "
            "models/open_clip/, then press R. clip: demo knows only demo's toy world; the exact "
            "checker knows the picture book, too. your votes: each step waits until you have "
            "chosen the best answers on this node; then queue again to continue.",
        )
        return _schema(
            node_id="MMaDAParallelParaRLFinetune",
            display_name="ParaRL Finetune",
            category="MMaDA-Parallel/training",
            description="Reinforcement learning on your own pictures and instructions: the model "
            "answers each instruction several times and learns from the answers "
            "whose text and picture agree best while they are still half formed.",
            search_aliases=["mmada", "finetune lora", "rl", "grpo", "reward", "parallel rl"],
            inputs=[
                *_model_and_dataset(),
                reward,
                *_main_widgets(replace(options["groups"], default=2), steps=100),
                *(widget(options[n]) for n in ("group_size", "scored_steps", "reward_at", "kl")),
                widget(
                    rollouts["text_steps"],
                    help="Number of steps at which text tokens of an answer are unmasked. An "
                    "answer takes as many steps as the larger of text_steps and image_steps.",
                ),
                widget(rollouts["image_steps"]),
                widget(
                    rollouts["text_temperature"],
                    help="How varied the texts of the answers are. Raise it if comparisons end "
                    "in ties.",
                    advanced=False,
                ),
                *_run_widgets("pararl", preview_every=5),
                widget(
                    rollouts["image_temperature"],
                    help="How varied the pictures of the answers are.",
                ),
                widget(options["inner_epochs"]),
                widget(options["clip"], name="clip_range"),
                widget(options["kl_reference"]),
                *_steering(options),
                io.String.Input(
                    "more_rewards",
                    default="",
                    optional=True,
                    tooltip="More rewards with their weights, which are added to reward, whose "
                    "weight is 1: consistency=0.5, clip: NAME=0.3, preference: NAME=2. "
                    "consistency: what the instruction does not name stays as it is. The node "
                    "shows the curve of each.",
                ),
                widget(
                    rollouts["joint_guidance"],
                    help="How strongly the pictures of the answers follow the instruction and the "
                    "input picture. Choose what you will use in Parallel Denoise, since training "
                    "helps there most. 0: off, which takes about half the time and memory.",
                    display_name="guidance",
                    low=0.0,
                    optional=True,
                ),
            ],
            curve="The mean reward at each step and, of several rewards, a picture with the curve "
            "of each.",
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        run_name: str = "",
        reward: str | None = "",
        more_rewards: str | None = "",
        **widgets: Any,
    ) -> Any:
        clips = folders.fingerprint(lambda: clips_of(reward or "", more_rewards or ""))
        return begun_with(cls.hidden.unique_id, run_name, **widgets), clips

    @classmethod
    def execute(
        cls,
        model: HostedModel,
        dataset: EditDataset,
        reward: str,
        more_rewards: str = "",
        joint_guidance: float = 0.0,
        **widgets: Any,
    ) -> io.NodeOutput:
        """``joint_guidance``: off for what was queued before there was the widget."""
        inputs = TrainingInputs.taken_from(widgets)
        sampler = replace(
            ROLLOUT_SAMPLER,
            joint_guidance=joint_guidance,
            **{name: widgets.pop(name) for name in _ROLLOUTS},
        )
        settings = ParaRLSettings(
            groups=widgets.pop("batch_size"),
            clip=widgets.pop("clip_range"),
            sampler=sampler,
            **widgets,
        )
        return train(
            model, dataset, ParaRL(settings, reward, more_rewards), inputs, cls.hidden.unique_id
        )


class SFTFinetune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            node_id="MMaDAParallelSFTFinetune",
            display_name="SFT Finetune (MMaDA)",
            category="MMaDA-Parallel/training",
            description="Supervised finetuning: teaches the model the reasoning and the wanted "
            "picture of each item of a dataset.",
            search_aliases=["mmada", "train", "train lora", "supervised", "finetune"],
            inputs=[
                *_model_and_dataset(),
                *_main_widgets(options_of(SFTSettings)["batch_size"], steps=200),
                *_run_widgets("sft", preview_every=25),
                *_steering(
                    options_of(SFTSettings),
                    "drop_text",
                    "drop_image",
                    "drop_both",
                    late=("rehearsal",),
                ),
            ],
            curve="The loss at each step.",
        )

    @classmethod
    def fingerprint_inputs(cls, run_name: str = "", **widgets: Any) -> Any:
        return begun_with(cls.hidden.unique_id, run_name, **widgets)

    @classmethod
    def execute(cls, model: HostedModel, dataset: EditDataset, **widgets: Any) -> io.NodeOutput:
        inputs = TrainingInputs.taken_from(widgets)
        return train(model, dataset, SFT(SFTSettings(**widgets)), inputs, cls.hidden.unique_id)


class PreferenceFinetune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        options = options_of(DPOSettings)
        return _schema(
            node_id="MMaDAParallelPreferenceFinetune",
            display_name="Preference Finetune (MMaDA)",
            category="MMaDA-Parallel/training",
            description="Trains on your picks (DPO): answers that you picked with Pick Sample "
            "become more likely, the others of their batch less likely.",
            search_aliases=["mmada", "dpo", "preference", "train lora", "finetune", "taste"],
            inputs=[
                _model(),
                io.Combo.Input(
                    "preferences",
                    options=list(training_folders.preference_sets()) or [folders.NO_ADAPTER],
                    tooltip="The name under which Pick Sample keeps your picks. Press R after "
                    "picking. A few dozen picks are a beginning.",
                ),
                *_main_widgets(options["batch_size"], steps=100),
                widget(options["beta"]),
                widget(options["masks"], advanced=True),
                *_run_widgets("preferences", preview_every=25),
                *_steering(options, held_out_data=False),
            ],
            curve="The loss at each step.",
        )

    @classmethod
    def validate_inputs(cls, preferences: str):
        """A folder may be newer than the list."""
        try:
            training_folders.preference_set(preferences)
        except InputError as problem:
            return str(problem)
        return True

    @classmethod
    def fingerprint_inputs(cls, preferences: str, run_name: str = "", **widgets: Any) -> Any:
        return begun_with(cls.hidden.unique_id, run_name, **widgets), folders.fingerprint(
            lambda: [training_folders.preference_set(preferences)]
        )

    @classmethod
    def execute(cls, model: HostedModel, preferences: str, **widgets: Any) -> io.NodeOutput:
        inputs = TrainingInputs.taken_from(widgets)
        picks = training_folders.preference_set(preferences)
        recipe = DPO(DPOSettings(**widgets))
        return train(model, open_preferences(picks), recipe, inputs, cls.hidden.unique_id)


def _schema(curve: str, **details: Any) -> io.Schema:
    return Schema(
        outputs=[
            LoraModel.Output(
                display_name="lora", tooltip="The trained adapter, for Apply LoRA and Save LoRA."
            ),
            LossMap.Output(
                display_name="loss_map", tooltip="The loss at each step, for Plot Loss."
            ),
            io.Int.Output(
                display_name="steps", tooltip="The total number of steps done, for Save LoRA."
            ),
            io.Image.Output(
                display_name="curve",
                tooltip=f"{curve} Where items are held out or guarded, one more picture: their "
                "losses, as shares of those at the start.",
            ),
        ],
        hidden=[io.Hidden.unique_id],
        is_output_node=True,  # the run folder keeps the adapter even if nothing is connected
        **details,
    )


def _model() -> io.Input:
    return Model.Input(
        "model",
        tooltip="The model to train, quantised or not; its own weights stay as they are. With "
        "Apply LoRA before it, the new adapter is trained on top of that one.",
    )


def _model_and_dataset() -> list[Any]:
    return [_model(), Dataset.Input("dataset", tooltip="From Load Edit Dataset.")]


def _steering(
    options: dict[str, Option],
    *more: str,
    late: tuple[str, ...] = (),
    held_out_data: bool = True,
) -> list[Any]:
    """What came later than the other widgets, each optional, so that what was queued before there
    were these can be queued again. ``late``: the latest. ``held_out_data``: whether there is such a
    input."""
    sockets = {
        "held_out_data": "Items like those of the dataset that are never trained on, instead of "
        "a share of the dataset (held_out).",
        "guard": "Items of a kind that the model could do before, from Load Edit Dataset. Their "
        "loss should not rise. Leave unconnected to use those that come with the "
        "checkpoint.",
        "samples": "Your own instructions, with or without pictures, from Load Edit Dataset. The "
        "first 8 are answered now and then, always with the same seed, and kept in "
        "the run's folder.",
    }
    if not held_out_data:
        del sockets["held_out_data"]
    return [
        *(widget(options[name], optional=True) for name in (*_STEERING, *more)),
        widget(options_of(AdapterSettings)["rslora"], optional=True),
        *(widget(options[name], optional=True) for name in late),
        widget(options_of(AdapterSettings)["dora"], optional=True),
        *(Dataset.Input(name, optional=True, tooltip=text) for name, text in sockets.items()),
    ]


def _main_widgets(batch: Option, steps: int) -> list[Any]:
    """In the order of ComfyUI's own trainer."""
    options, micro_batch = options_of(RunSettings), options_of(RunSettings)["micro_batch"]
    return [
        widget(batch, name="batch_size"),
        widget(
            micro_batch,
            default=0,
            low=0,
            help=f"{micro_batch.help} 0: as many as there is memory for.",
        ),
        widget(options["steps"], default=steps),
        widget(options["learning_rate"]),
        widget(options_of(AdapterSettings)["rank"]),
        widget(options["seed"], control=io.ControlAfterGenerate.fixed),
        widget(options["gradient_checkpointing"]),
        io.Combo.Input(
            "existing_lora",
            options=folders.adapter_names(),
            default=folders.NO_ADAPTER,
            tooltip="An adapter in models/loras to train further. Rank and layers are then those "
            "of the file. none: a new adapter.",
        ),
    ]


def _run_widgets(name: str, preview_every: int) -> list[Any]:
    options = options_of(RunSettings)
    return [
        io.String.Input(
            "run_name",
            default=name,
            tooltip="Name of the run. It is kept in output/mmada_parallel/training/, in a folder "
            "of this name and a number.",
        ),
        io.Boolean.Input(
            "resume",
            default=False,
            tooltip="Continue the newest run of this name, after an interruption or with more "
            "steps. If there is none, or if this is off, a new run begins.",
        ),
        io.Int.Input(
            "preview_every",
            **between(0, 10_000, default=preview_every),
            tooltip="Number of steps between two sets of samples on the node. 0: no samples.",
        ),
        widget(options_of(AdapterSettings)["layers"]),
        widget(options["schedule"]),
        widget(options["warmup_steps"]),
        widget(options["checkpoint_every"], default=10),
        io.Int.Input(
            "text_length",
            **between(0, 4096, default=0),
            advanced=True,
            tooltip="How many tokens the text may have. 0: the checkpoint's own number. Fewer "
            "tokens are faster and need less memory.",
        ),
    ]

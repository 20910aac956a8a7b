"""ParaRL Finetune and SFT Finetune."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from comfy_api.latest import io
from PIL import Image

from ..mmp_core import Model
from ..training.cases import Case, Pair, Reward
from ..training.data.dataset import EditDataset
from ..training.loop.memory import finetune_bytes, pararl_bytes
from ..training.loop.run import PolicyRun
from ..training.pararl.run import ParaRLRun
from ..training.pararl.settings import ROLLOUT_SAMPLER, ParaRLSettings
from ..training.rewards.registry import chosen, widget_values
from ..training.samples import answers
from ..training.sft.run import FinetuneRun
from ..training.sft.settings import SFTSettings
from ..training.weights.policies import LoRA
from ..views.examples import answers_sheet
from . import host
from .host import folders
from .training_recipe import Metrics
from .training_run import Begin, train
from .training_widgets import (
    advanced_widgets,
    model_and_dataset,
    outputs,
    run_widgets,
    trainer_widgets,
)
from .types import CATEGORY

_SHOWN = 4


class ParaRLFinetune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMaDAParallelParaRLFinetune",
            display_name="ParaRL Finetune",
            category=CATEGORY,
            description="Reinforcement learning on your own pictures and instructions: the model "
            "answers each several times, and learns from those whose text and picture agree best, "
            "while they are still half-formed.",
            search_aliases=["mmada", "train lora", "rl", "grpo", "reward", "parallel rl"],
            inputs=[
                *model_and_dataset(),
                io.Combo.Input(
                    "reward",
                    options=widget_values(folders.clip_names()),
                    default="checker (toy world)",
                    tooltip="What is paid for. clip: how well text and picture agree by a CLIP; "
                    "put those in open_clip's format, each in a folder of its own, into "
                    "models/open_clip/, then press R (needs the Python package open_clip_torch). "
                    "clip: demo and the exact checker know the demo's toy world only.",
                ),
                *trainer_widgets("Instructions", 2, 100),
                *_pararl_widgets(),
                *run_widgets("pararl", 5),
                *advanced_widgets(),
                *_rare_widgets(),
            ],
            outputs=outputs("The mean reward of each step."),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # the run folder keeps the adapter even if nothing is connected
        )

    @classmethod
    def execute(
        cls,
        model: host.HostedModel,
        dataset: EditDataset,
        reward: str,
        batch_size: int,
        text_steps: int,
        image_steps: int,
        text_temperature: float,
        image_temperature: float,
        clip_range: float,
        **widgets,
    ) -> io.NodeOutput:
        begin, stepping = _split(widgets)
        sampler = replace(
            ROLLOUT_SAMPLER,
            text_steps=text_steps,
            image_steps=image_steps,
            text_temperature=text_temperature,
            image_temperature=image_temperature,
        )
        settings = ParaRLSettings(groups=batch_size, clip=clip_range, sampler=sampler, **stepping)
        return train(model, dataset, ParaRL(settings, reward), begin, cls.hidden.unique_id)


class SFTFinetune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMaDAParallelSFTFinetune",
            display_name="SFT Finetune",
            category=CATEGORY,
            description="Supervised finetuning: teaches the reasoning and the wanted picture of "
            "each item of a dataset.",
            search_aliases=["mmada", "train lora", "supervised", "sft"],
            inputs=[
                *model_and_dataset(),
                *trainer_widgets("Items", SFTSettings.batch_size, 200),
                *run_widgets("sft", 25),
                *advanced_widgets(),
            ],
            outputs=outputs("The loss of each step."),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: host.HostedModel, dataset: EditDataset, batch_size: int, **widgets
    ) -> io.NodeOutput:
        begin, stepping = _split(widgets)
        recipe = SFT(SFTSettings(batch_size=batch_size, **stepping))
        return train(model, dataset, recipe, begin, cls.hidden.unique_id)


@dataclass
class ParaRL:
    """A ``Recipe``. ``reward``: as its widget says; ``judge``: it, once loaded."""

    settings: ParaRLSettings
    reward: str
    judge: Reward | None = None
    need_target = False
    curve = ("reward_mean", "mean reward")

    @property
    def most(self) -> int:
        return self.settings.groups * self.settings.group_size

    def check(self, dataset: EditDataset) -> None:
        kind, _ = chosen(self.reward)
        kind.check(dataset)

    def load(self) -> None:
        kind, place = chosen(self.reward)
        self.judge = kind.make(place, host.load_clip)

    def bytes_of(self, model: Model, cases: Sequence[Case], trained: int, at_once: int) -> int:
        return pararl_bytes(model, cases, self.settings, trained, at_once)

    def run(
        self,
        model: Model,
        cases: Sequence[Case],
        settings: ParaRLSettings,
        folder: Path,
        policy: LoRA,
    ) -> PolicyRun:
        return ParaRLRun(model, cases, self.judge, settings, folder, policy=policy)

    def figures(self, metrics: Metrics) -> str:
        lines = [
            f"reward {metrics['reward_mean']:.3f} ± {metrics['reward_std']:.3f}",
            f"KL {metrics['kl']:.4f}, clipped {metrics['clip_fraction']:.1%}, "
            f"gradient {metrics['grad_norm']:.3g}",
        ]
        if skipped := round(metrics["groups_skipped"]):
            lines.append(f"{skipped} of {self._comparisons} comparisons were ties: nothing learnt")
        return "\n".join(lines)

    @property
    def _comparisons(self) -> int:
        """Of the answers to one instruction with each other, per step."""
        settings, sampler = self.settings, self.settings.sampler
        if settings.reward_at == "output":
            return settings.groups
        steps = max(sampler.text_steps, sampler.image_steps)
        return settings.groups * min(settings.scored_steps, steps)

    def picture(self, run: ParaRLRun) -> Image.Image:
        return _sheet(run.samples(_SHOWN))


@dataclass(frozen=True)
class SFT:
    """A ``Recipe``."""

    settings: SFTSettings
    need_target = True
    curve = ("loss", "loss")

    @property
    def most(self) -> int:
        return self.settings.batch_size

    def check(self, dataset: EditDataset) -> None:
        pass  # items without target are told, or skipped, when they are tokenised

    def load(self) -> None:
        pass

    def bytes_of(self, model: Model, cases: Sequence[Case], trained: int, at_once: int) -> int:
        return finetune_bytes(model, cases, self.settings, trained, at_once)

    def run(
        self,
        model: Model,
        cases: Sequence[Case],
        settings: SFTSettings,
        folder: Path,
        policy: LoRA,
    ) -> PolicyRun:
        return FinetuneRun(model, cases, settings, folder, policy=policy)

    def figures(self, metrics: Metrics) -> str:
        return (
            f"loss {metrics['loss']:.3f}: text {metrics['text_loss']:.3f}, picture "
            f"{metrics['image_loss']:.3f}\ngradient {metrics['grad_norm']:.3g}"
        )

    def picture(self, run: FinetuneRun) -> Image.Image:
        pairs = answers(
            run.model,
            run.cases[:_SHOWN],
            seed=run.settings.seed,
            micro_batch=min(_SHOWN, run.settings.micro_batch),
            progress=lambda done, total: host.stop_if_interrupted(),
        )
        return _sheet(pairs)


def _sheet(pairs: list[Pair]) -> Image.Image:
    return answers_sheet((pair.case.instruction, pair.text, pair.picture) for pair in pairs)


def _split(widgets: dict) -> tuple[Begin, dict]:
    """What all training shares, and what goes into the settings of a run."""
    names = Begin.__dataclass_fields__
    begin = Begin(**{name: widgets[name] for name in names})
    return begin, {name: value for name, value in widgets.items() if name not in names}


def _pararl_widgets() -> list[io.Input]:
    return [
        io.Int.Input(
            "group_size",
            default=ParaRLSettings.group_size,
            min=2,
            max=256,
            tooltip="Answers to each instruction, which are compared with each other.",
        ),
        io.Int.Input(
            "scored_steps",
            default=ParaRLSettings.scored_steps,
            min=1,
            max=256,
            tooltip="Denoising steps, drawn at random, at which each answer is scored and learnt "
            "from.",
        ),
        io.Combo.Input(
            "reward_at",
            options=["trajectory", "output"],
            default=ParaRLSettings.reward_at,
            tooltip="trajectory: text and picture are scored half-formed, at the scored steps. "
            "output: only the finished pair is scored, for comparison.",
        ),
        io.Float.Input(
            "kl",
            default=ParaRLSettings.kl,
            min=0.0,
            max=10.0,
            step=0.0001,
            tooltip="How strongly the model is held to what it was. Too low: it may learn to "
            "please the reward alone.",
        ),
        io.Int.Input(
            "text_steps",
            default=ROLLOUT_SAMPLER.text_steps,
            min=1,
            max=4096,
            tooltip="Steps that decide the text of an answer. Time goes with the larger of the "
            "two.",
        ),
        io.Int.Input(
            "image_steps",
            default=ROLLOUT_SAMPLER.image_steps,
            min=1,
            max=4096,
            tooltip="Steps that decide the picture of an answer, among the same steps.",
        ),
        io.Float.Input(
            "text_temperature",
            default=ROLLOUT_SAMPLER.text_temperature,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="Variety of the answers' texts. Raise it when comparisons are ties.",
        ),
    ]


def _rare_widgets() -> list[io.Input]:
    return [
        io.Float.Input(
            "image_temperature",
            default=ROLLOUT_SAMPLER.image_temperature,
            min=0.0,
            max=10.0,
            step=0.05,
            advanced=True,
            tooltip="Variety of the answers' pictures.",
        ),
        io.Int.Input(
            "inner_epochs",
            default=ParaRLSettings.inner_epochs,
            min=1,
            max=64,
            advanced=True,
            tooltip="Updates from the same answers.",
        ),
        io.Float.Input(
            "clip_range",
            default=ParaRLSettings.clip,
            min=0.01,
            max=10.0,
            step=0.01,
            advanced=True,
            tooltip="How far one step may change a token's probability, as a share, before it "
            "stops counting.",
        ),
        io.Combo.Input(
            "kl_reference",
            options=["base", "old"],
            default=ParaRLSettings.kl_reference,
            advanced=True,
            tooltip="What kl holds to: the model without the trained adapter, or as it was before "
            "the step.",
        ),
    ]

"""Score Alignment and Pick Sample: how well text and picture agree, and the best of a batch."""

from typing import Any, TypeVar

import torch
from comfy_api.v0_0_2 import io
from PIL import Image

from ..mmp_core import InputError, Prompt, TokenState, Trajectory, decode_image, decode_text
from ..training.dpo.preferences import digest_of, picks_in, save_preference
from ..training.rewards.clip import score_trajectory
from ..views.plot import line_plot
from . import host
from .host import folders, training_folders
from .pictures import shown, to_pictures, to_pixels
from .types import Model, Schema, Tokens
from .types import Prompt as PromptType
from .types import Trajectory as TrajectoryType
from .widgets import between

T = TypeVar("T")

_LAST_SAMPLE, _MOST_SEEN = 4095, 4096
_seen: dict[str, None] = {}
"""Batches that went through Pick Sample since ComfyUI was started, the latest last."""
_AGREEMENT = "agreement of text and image (CLIP)"


class ScoreAlignment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelScoreAlignment",
            display_name="Score Alignment (MMaDA)",
            category="MMaDA-Parallel/trajectory",
            description="Measures with CLIP how well text and picture agree: for one pair, for "
            "each result of a batch, or for a run step by step.",
            search_aliases=["mmada", "clip score", "best of n", "reward"],
            inputs=_inputs(),
            outputs=[
                io.Float.Output(
                    display_name="score",
                    tooltip="Agreement of the best sample: the cosine similarity, from -1 to 1.",
                ),
                io.Float.Output(
                    display_name="mean", tooltip="The mean agreement of all samples of the batch."
                ),
                io.Int.Output(
                    display_name="best",
                    tooltip="Number of the best sample in its batch, counted from 0, for Pick "
                    "Sample.",
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="Agreement over the steps of a trajectory, with one line per sample; "
                    "without a trajectory, one point per sample.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # so that the plot is shown on the node
        )

    @classmethod
    def fingerprint_inputs(cls, clip: str, **_: Any) -> Any:
        return folders.fingerprint(lambda: [folders.clips().get(clip)])

    @classmethod
    def execute(
        cls,
        clip: str,
        model: host.HostedModel | None = None,
        tokens: TokenState | None = None,
        trajectory: Trajectory | None = None,
        text: str | None = None,
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        texts = None if text is None else [text]
        pictures = None if image is None else to_pictures(image)
        _check(texts is not None and pictures is not None, model, tokens, trajectory)
        scorer, progress = host.load_clip(clip), host.Progress(cls.hidden.unique_id)
        if model and trajectory is not None:
            scores, plot = _over_steps(scorer, model, trajectory, texts, pictures, progress)
        else:
            if model and tokens is not None:
                texts = texts or decode_text(model.model, tokens)
                pictures = pictures or _decoded(model, tokens, progress)
            texts, pictures = texts or [], pictures or []
            count = max(len(texts), len(pictures))
            scores = scorer.score(
                _spread(texts, count, "texts"), _spread(pictures, count, "images")
            )
            plot = line_plot(
                scores[:, None],
                range(len(scores)),
                x_label="sample",
                y_label=_AGREEMENT,
                joined=False,
            )
        pixels, best = to_pixels([plot]), int(scores.argmax())
        summary = f"{scores[best]:.3f}"
        if len(scores) > 1:
            summary = f"best: sample {best}, {summary}; mean {scores.mean():.3f}"
        return io.NodeOutput(
            float(scores[best]),
            float(scores.mean()),
            best,
            host.to_intermediate(pixels),
            ui=shown(pixels, summary, cls),
        )


class PickSample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelPickSample",
            display_name="Pick Sample (MMaDA)",
            category="MMaDA-Parallel/trajectory",
            description="Takes one sample out of a batch of tokens. Connect best of Score "
            "Alignment to get the best of N. It can also keep your picks, to train "
            "on them.",
            search_aliases=["mmada", "best of n", "from batch", "preference", "dpo"],
            inputs=[
                Tokens.Input("tokens", tooltip="A batch, from Parallel Denoise."),
                io.Int.Input(
                    "index",
                    **between(0, _LAST_SAMPLE, default=0),
                    tooltip="Number of the sample, from 0. Connect the best of Score Alignment.",
                ),
                io.String.Input(
                    "preferences",
                    default="",
                    optional=True,
                    tooltip="A name under which your picks are kept, for Preference Finetune; "
                    "empty: picks are not kept. Look at the batch first, then set index "
                    "and queue again with the same seed: that this sample is better than "
                    "the others is kept in output/mmada_parallel/preferences. Another "
                    "index replaces the pick. Needs model and prompt.",
                ),
                Model.Input(
                    "model",
                    optional=True,
                    tooltip="The checkpoint that made the tokens. Only needed for preferences.",
                ),
                PromptType.Input(
                    "prompt",
                    optional=True,
                    tooltip="The prompt that the tokens answer. Only needed for preferences.",
                ),
            ],
            outputs=[Tokens.Output(display_name="tokens", tooltip="That sample alone.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, preferences: str | None = "", **_: Any) -> float:
        """With ``preferences`` it runs each time, since the second time is a pick."""
        return float("nan") if preferences and preferences.strip() else 0.0

    @classmethod
    def execute(
        cls,
        tokens: TokenState,
        index: int,
        preferences: str | None = "",
        model: host.HostedModel | None = None,
        prompt: Prompt | None = None,
    ) -> io.NodeOutput:
        if not 0 <= index < tokens.batch:
            raise InputError(
                f"index is {index}, but the tokens are a batch of {tokens.batch}: choose 0 to "
                f"{tokens.batch - 1}."
            )
        picked, name = tokens[index : index + 1], (preferences or "").strip()
        if not name:
            return io.NodeOutput(picked)
        if model is None or prompt is None:
            raise InputError(
                "preferences keeps picks to train on: connect model and prompt too, or clear it."
            )
        return io.NodeOutput(picked, ui={"text": (_kept(cls, name, model, prompt, tokens, index),)})


def _kept(
    cls: type[io.ComfyNode],
    name: str,
    model: host.HostedModel,
    prompt: Prompt,
    tokens: TokenState,
    index: int,
) -> str:
    """Keep the pick if the batch was seen before or the index is another node's; what was done."""
    folder, digest = training_folders.new_preference_set(name), digest_of(prompt, tokens)
    node = (cls.hidden.prompt or {}).get(cls.hidden.unique_id) or {}
    chosen = isinstance(node.get("inputs", {}).get("index"), list)
    if not chosen and digest not in _seen:
        _seen[digest] = None
        while len(_seen) > _MOST_SEEN:
            del _seen[next(iter(_seen))]
        return (
            f"Not kept yet. Look at the {tokens.batch} samples, set index to the best one and "
            "queue again with the same seed."
        )
    model.prepare_decoding(tokens.grid)
    save_preference(folder, model.model, prompt, tokens, index)
    picks = len(picks_in(folder))
    return (
        f"Kept: sample {index} is the best of {tokens.batch}. {name} now holds {picks} "
        f"{'pick' if picks == 1 else 'picks'}."
    )


def _inputs() -> list[io.Input]:
    return [
        Model.Input(
            "model",
            optional=True,
            tooltip="The checkpoint that made the tokens or the trajectory. Not needed for text "
            "and image.",
        ),
        Tokens.Input(
            "tokens",
            optional=True,
            tooltip="From Parallel Denoise. The result of each sample is scored.",
        ),
        TrajectoryType.Input(
            "trajectory",
            optional=True,
            tooltip="From Parallel Denoise, instead of tokens. The result is scored, and the "
            "plot shows how well text and picture agree at each recorded step.",
        ),
        io.String.Input(
            "text",
            optional=True,
            force_input=True,
            tooltip="One text to score instead of the text in the tokens, such as the instruction.",
        ),
        io.Image.Input(
            "image",
            optional=True,
            tooltip="A picture, or one per sample, to score instead of the picture in the tokens.",
        ),
        io.Combo.Input(
            "clip",
            options=list(folders.clips()),
            default="demo",
            tooltip="The CLIP model to measure with. demo knows only the toy scenes and is weak. "
            "Put others, in open_clip's format and each in a folder of its own, into "
            "models/open_clip/, then press R. Needs the Python package open_clip_torch.",
        ),
    ]


def _check(
    whole_pair: bool,
    model: host.HostedModel | None,
    tokens: TokenState | None,
    trajectory: Trajectory | None,
) -> None:
    """Raises ``InputError`` where it is not clear what to score."""
    if tokens is not None and trajectory is not None:
        raise InputError("Both tokens and a trajectory are connected: disconnect one of them.")
    made = tokens is not None or trajectory is not None
    if whole_pair and made:
        raise InputError(
            "Text and image are already a pair to score: disconnect the tokens or the trajectory, "
            "or one of the two."
        )
    if not whole_pair and not made:
        raise InputError(
            "There is nothing to score: connect tokens or a trajectory, or both a text and an "
            "image."
        )
    if made and model is None:
        raise InputError(
            "Tokens and trajectories are scored with the model that made them: connect it."
        )


def _over_steps(
    scorer: host.HostedClip,
    model: host.HostedModel,
    run: Trajectory,
    texts: list[str] | None,
    pictures: list[Image.Image] | None,
    progress: host.Progress,
) -> tuple[torch.Tensor, Image.Image]:
    """Scores (B,) of the final state, and the plot over the steps."""

    def callback(done: int, total: int) -> None:
        host.stop_if_interrupted()
        progress.show(done, total)

    if pictures is None:
        _check_picture(run.final)
        model.prepare_decoding(run.final.grid, scorer)
    curves = score_trajectory(
        scorer,
        model.model,
        run,
        texts=texts and _spread(texts, run.final.batch, "texts"),
        images=pictures and _spread(pictures, run.final.batch, "images"),
        callback=callback,
    )
    steps = [*(step.index + 1 for step in run.steps), run.total_steps]
    return curves[-1], line_plot(curves, steps, x_label="step", y_label=_AGREEMENT)


def _check_picture(tokens: TokenState) -> None:
    if not min(tokens.grid):
        raise InputError("The answer is text alone: connect the picture to score it against.")


def _decoded(
    model: host.HostedModel, tokens: TokenState, progress: host.Progress
) -> list[Image.Image]:
    _check_picture(tokens)
    model.prepare_decoding(tokens.grid)
    pictures = []
    for index in range(tokens.batch):
        host.stop_if_interrupted()
        progress.show(index, tokens.batch)
        pictures += decode_image(model.model, tokens[index : index + 1])
    return pictures


def _spread(values: list[T], count: int, name: str) -> list[T]:
    if len(values) not in (1, count):
        raise InputError(
            f"There are {len(values)} {name} for {count} samples: give one for all, or one each."
        )
    return values if len(values) == count else values * count

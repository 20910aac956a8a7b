"""Trajectory Step and Trajectory Sheet: what a run went through."""

from comfy_api.v0_0_2 import io

from ..mmp_core import InputError
from ..mmp_core import Trajectory as RecordedRun
from ..views.sheet import contact_sheet
from ..views.trajectory import frame_pixels, spread_steps, trajectory_frames
from .host import HostedModel, interruptible
from .pictures import to_pixels
from .types import Model, Schema, Tokens, Trajectory
from .widgets import between

_MOST_PIXELS = 500_000_000
"""Of all frames, each of which is kept in 12 bytes, in the frames and in the sheet."""


class TrajectoryStep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelTrajectoryStep",
            display_name="Trajectory Step",
            category="MMaDA-Parallel/trajectory",
            description="Picks one step of a run, half denoised, to look at it, to change it, or "
            "to continue from it with other settings.",
            search_aliases=["mmada", "resume", "intermediate"],
            inputs=[
                Trajectory.Input("trajectory", tooltip="From Parallel Denoise."),
                io.Float.Input(
                    "fraction",
                    **between(0.0, 1.0, default=0.5, step=0.01),
                    tooltip="Position in the run. 0: before its first step. 1: its end.",
                ),
                io.Int.Input(
                    "index",
                    **between(-1, 4095, default=-1),
                    advanced=True,
                    tooltip="Number of a recorded step, counted from 0, to be used instead of "
                    "the fraction. -1: use the fraction.",
                ),
            ],
            outputs=[
                Tokens.Output(
                    display_name="tokens",
                    tooltip="The text and picture at that step. What was masked then is masked "
                    "here.",
                ),
                Tokens.Output(
                    display_name="guess",
                    tooltip="The same, with the model's guess in place of masked tokens.",
                ),
                io.Int.Output(
                    display_name="step", tooltip="The number of steps that were done by then."
                ),
            ],
        )

    @classmethod
    def execute(cls, trajectory: RecordedRun, fraction: float, index: int) -> io.NodeOutput:
        _check_recorded(trajectory)
        if index >= len(trajectory):
            raise InputError(
                f"index is {index}; the trajectory has {len(trajectory)} recorded steps, from 0."
            )
        step = trajectory.at(fraction) if index < 0 else trajectory.steps[index]
        return io.NodeOutput(step.after, step.guess, step.index + 1)


class TrajectorySheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelTrajectorySheet",
            display_name="Trajectory Sheet",
            category="MMaDA-Parallel/trajectory",
            description="The run at a glance: text beside picture at several steps, as one sheet "
            "and as frames for a video.",
            search_aliases=["mmada", "contact sheet", "video", "animation"],
            inputs=[
                Model.Input("model", tooltip="The checkpoint of the run."),
                Trajectory.Input("trajectory", tooltip="From Parallel Denoise."),
                io.Int.Input(
                    "steps",
                    **between(1, 4096, default=8),
                    tooltip="How many steps to show, spread evenly over the recorded ones.",
                ),
                io.Int.Input(
                    "columns",
                    **between(1, 64, default=2),
                    tooltip="Number of columns of the sheet.",
                ),
                io.Boolean.Input(
                    "confidence",
                    default=False,
                    tooltip="Shows how sure the model is of each part of the picture, from "
                    "violet (unsure) to yellow (sure), instead of a veil over masked "
                    "parts.",
                ),
                io.Int.Input(
                    "side",
                    **between(64, 2048, default=256, step=16),
                    advanced=True,
                    tooltip="Height of each picture in pixels.",
                ),
                io.Int.Input(
                    "sample",
                    **between(0, 4095, default=0),
                    advanced=True,
                    tooltip="Which result of a batch to show, counted from 0.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="All frames in one picture."),
                io.Image.Output(
                    display_name="frames", tooltip="The frames as a batch, for a video node."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HostedModel,
        trajectory: RecordedRun,
        steps: int,
        columns: int,
        confidence: bool,
        side: int,
        sample: int,
    ) -> io.NodeOutput:
        _check_recorded(trajectory)
        if sample >= trajectory.final.batch:
            raise InputError(
                f"sample is {sample}; the run has {trajectory.final.batch} result(s), from 0."
            )
        shown = spread_steps(trajectory, steps)
        pixels = len(shown) * frame_pixels(trajectory.final.grid, side)
        if pixels > _MOST_PIXELS:
            raise InputError(
                f"{len(shown)} frames with a side of {side} have {pixels / 1e6:.0f} million "
                f"pixels; expected at most {_MOST_PIXELS / 1e6:.0f} million: lower steps or side."
            )
        model.prepare_decoding(trajectory.final.grid)
        watched = interruptible(shown)
        frames = trajectory_frames(
            model.model, trajectory, watched, sample=sample, side=side, heat=confidence
        )
        sheet = contact_sheet(frames, columns)
        return io.NodeOutput(to_pixels([sheet]), to_pixels(frames))


def _check_recorded(trajectory: RecordedRun) -> None:
    if trajectory.total_steps and not len(trajectory):
        raise InputError("The run recorded no steps: set record_steps of Parallel Denoise above 0.")

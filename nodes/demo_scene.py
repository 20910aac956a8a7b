"""Demo Scene: pictures of the toy world that the demo checkpoint knows."""

from comfy_api.v0_0_2 import io

from ..demo.dataset import HELD_OUT
from ..demo.kinds import EDITS
from ..demo.photo import on_a_wall, on_paper
from ..demo.render import render
from ..demo.world import task
from .pictures import shown, to_pixels
from .types import Schema
from .widgets import between

_ANY = "any"
_PICTURES = ("scene", "large print", "room")


class DemoScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelDemoScene",
            display_name="Demo Scene",
            category="MMaDA-Parallel/pictures",
            description="A picture of the toy world that the demo checkpoint knows, and an "
            "instruction that fits it. Neither was seen in training.",
            search_aliases=["mmada", "toy world", "example"],
            inputs=[
                io.Int.Input(
                    "seed",
                    **between(0, 0xFFFFFFFF, default=0),
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Number of the scene.",
                ),
                io.Combo.Input(
                    "edit",
                    options=[_ANY, *EDITS],
                    default=_ANY,
                    tooltip="What the suggested instruction asks for.",
                ),
                io.Combo.Input(
                    "picture",
                    options=list(_PICTURES),
                    default=_PICTURES[0],
                    optional=True,
                    tooltip="scene: 128x128 pixels, the size at which the demo checkpoint draws. "
                    "large print: the same scene at 1024x1024 pixels, on rough paper. "
                    "room: a photo of 1536x1024 pixels in which the scene hangs on the "
                    "wall, from x 640, y 320 to x 896, y 576.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The scene, or the picture around it."
                ),
                io.String.Output(
                    display_name="instruction",
                    tooltip="An instruction that has exactly one right answer for this scene.",
                ),
            ],
            is_output_node=True,  # so that the scene is shown again when it comes from the cache
        )

    @classmethod
    def execute(cls, seed: int, edit: str, picture: str = _PICTURES[0]) -> io.NodeOutput:
        chosen = task(HELD_OUT + seed, kinds=EDITS if edit == _ANY else (edit,))
        if picture == "room":
            beside = [task(HELD_OUT + seed + step, kinds=EDITS).source for step in (1, 2)]
            drawn = on_a_wall(chosen.source, beside)
        else:
            drawn = on_paper(chosen.source) if picture == "large print" else render(chosen.source)
        image = to_pixels([drawn])
        ui = shown(image, chosen.instruction, cls)
        return io.NodeOutput(image, chosen.instruction, ui=ui)

"""Demo Scene: pictures of the toy world that the demo checkpoint knows."""

from comfy_api.latest import io

from ..demo.dataset import HELD_OUT
from ..demo.kinds import EDITS
from ..demo.render import render
from ..demo.world import task
from .pictures import shown, to_pixels
from .types import Schema
from .widgets import between

_ANY = "any"


class DemoScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelDemoScene",
            display_name="Demo Scene",
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
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The scene, 128x128 pixels."),
                io.String.Output(
                    display_name="instruction",
                    tooltip="An instruction that has exactly one right answer for this scene.",
                ),
            ],
            is_output_node=True,  # so that the scene is shown again when it comes from the cache
        )

    @classmethod
    def execute(cls, seed: int, edit: str) -> io.NodeOutput:
        chosen = task(HELD_OUT + seed, kinds=EDITS if edit == _ANY else (edit,))
        image = to_pixels([render(chosen.source)])
        ui = shown(image, chosen.instruction, cls)
        return io.NodeOutput(image, chosen.instruction, ui=ui)

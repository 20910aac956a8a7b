"""Demo Scene: pictures of the worlds that the embedded checkpoints know."""

from comfy_api.v0_0_2 import io

from ..demo import kinds, world
from ..demo.dataset import HELD_OUT
from ..demo.photo import on_a_wall, on_paper
from ..demo.picture_book import edits, tasks
from ..demo.worlds import AnyTask
from ..mmp_core.errors import InputError
from .pictures import shown, to_pixels
from .types import Schema
from .widgets import between

_ANY = "any"
_PICTURES = ("scene", "large print", "room")
_TOY, _BOOK = "demo", "picture-book"
_EDITS = {_TOY: tuple(kinds.EDITS), _BOOK: tuple(edits.EDITS)}


class DemoScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="MMaDAParallelDemoScene",
            display_name="Demo Scene",
            category="MMaDA-Parallel/pictures",
            description="A picture of a world that one of the small checkpoints knows, and an "
            "instruction that fits it. Neither was seen in training.",
            search_aliases=["mmada", "toy world", "picture book", "example"],
            inputs=[
                io.Int.Input(
                    "seed",
                    **between(0, 0xFFFFFFFF, default=0),
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Number of the scene.",
                ),
                io.Combo.Input(
                    "edit",
                    options=[
                        _ANY,
                        *dict.fromkeys(edit for those in _EDITS.values() for edit in those),
                    ],
                    default=_ANY,
                    tooltip="What the suggested instruction asks for. count and background are "
                    "edits of demo alone; resize, swap, time and ground of picture-book.",
                ),
                io.Combo.Input(
                    "picture",
                    options=list(_PICTURES),
                    default=_PICTURES[0],
                    optional=True,
                    tooltip="scene: the size at which its checkpoint draws (demo: 128x128 pixels, "
                    "picture-book: 256x256). "
                    "large print: the same scene at 1024x1024 pixels, on rough paper. "
                    "room: a photo of 1536x1024 pixels in which the scene hangs on the "
                    "wall, from x 640, y 320 to x 896, y 576.",
                ),
                io.Combo.Input(
                    "world",
                    options=list(_EDITS),
                    default=_TOY,  # as before there was the choice; a new node: web/settings.js
                    optional=True,
                    tooltip="Choose the checkpoint that Load MMaDA-Parallel loads. demo: plain "
                    "shapes. picture-book: little scenes of houses, trees, boats and sky.",
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
    def execute(
        cls, seed: int, edit: str, picture: str = _PICTURES[0], world: str = _TOY
    ) -> io.NodeOutput:
        if edit not in (_ANY, *_EDITS[world]):
            raise InputError(
                f"There is no edit {edit} in the world {world}: choose any, "
                f"{', '.join(_EDITS[world][:-1])} or {_EDITS[world][-1]}."
            )
        chosen = _task(world, seed, edit)
        if picture == "room":
            beside = [_task(world, seed + step, _ANY).source for step in (1, 2)]
            drawn = on_a_wall(chosen.source, beside)
        else:
            source = chosen.source
            drawn = on_paper(source) if picture == "large print" else source.picture()
        image = to_pixels([drawn])
        ui = shown(image, chosen.instruction, cls)
        return io.NodeOutput(image, chosen.instruction, ui=ui)


def _task(name: str, seed: int, edit: str) -> AnyTask:
    """One that was never trained on."""
    wanted = _EDITS[name] if edit == _ANY else (edit,)
    if name == _TOY:
        return world.task(HELD_OUT + seed, kinds=wanted)
    return tasks.task(seed, held_out=True, kinds=wanted)

"""What a run shows while it denoises: text and picture as they form."""

from PIL import Image

from ..mmp_core import Model, Step, TokenState, Trajectory, decode_image, decode_text
from ..mmp_core import undecided_pixels as undecided_pixels_of
from .host import Progress, stop_if_interrupted

UNDECIDED = "░"
"""Stands for an undecided text token."""
_VEIL = "#808080"
_VEIL_STRENGTH = 0.6


class LiveView:
    """A callback for ``denoise``. Shows the first sample of a batch; stops when interrupted."""

    def __init__(self, model: Model, progress: Progress, preview_every: int):
        self.model, self.progress, self.preview_every = model, progress, preview_every

    def __call__(self, index: int, total: int, step: Step) -> None:
        stop_if_interrupted()
        wanted = self.preview_every and index % self.preview_every == 0
        picture = None
        if wanted and self.progress.picture_due:
            picture = veiled_picture(self.model, step.guess[:1], step.after[:1])
        self.progress.show(index + 1, total, picture)
        if self.progress.text_due:
            self._show_text(step.after)

    def finish(self, trajectory: Trajectory) -> None:
        """Show the result."""
        total, final = max(trajectory.total_steps, 1), trajectory.final[:1]
        picture = decode_image(self.model, final)[0] if self.preview_every else None
        self.progress.show(total, total, picture)
        self._show_text(final)

    def _show_text(self, state: TokenState) -> None:
        self.progress.show_text(decode_text(self.model, state[:1], masked=UNDECIDED)[0])


def veiled_picture(model: Model, guess: TokenState, decided: TokenState) -> Image.Image:
    """The model's guess, under a grey veil where it is not decided. Batches of one."""
    picture = decode_image(model, guess)[0]
    veil = Image.new("RGB", picture.size, _VEIL)
    undecided = Image.fromarray(undecided_pixels_of(model, decided)[0].numpy())
    return Image.composite(Image.blend(picture, veil, _VEIL_STRENGTH), picture, undecided)

"""What nodes do with a hosted model before they use it."""

from mmada_parallel.mmp_core import SamplerSettings
from mmada_parallel.mmp_core.memory import denoising_estimate


def prepare(hosted, prompt, *, previews=False):
    """Load what denoising ``prompt`` needs, as Parallel Denoise does."""
    estimate = denoising_estimate(hosted.model, prompt, SamplerSettings())
    hosted.memory_budget(prompt, previews=previews).prepare(estimate, prompt.batch)


class Recorder:
    """Stands for `host.Progress`; everything is due."""

    text_due = picture_due = True
    node_id = shown_id = "4"

    def __init__(self):
        self.steps, self.pictures, self.texts, self.words, self.places = [], [], [], [], []

    def show(self, done, total, picture=None):
        self.steps.append((done, total))
        self.pictures.append(picture)

    def show_text(self, text):
        self.texts.append(text)

    def show_words(self, done, total, words, text, **place):
        self.places.append(place)
        self.words.append((done, words))
        self.texts.append(text)

"""What nodes do with a hosted model before they use it."""

from mmada_parallel.mmp_core import SamplerSettings
from mmada_parallel.mmp_core.memory import denoising_need


def prepare(hosted, prompt, *, previews=False):
    """Load what denoising ``prompt`` needs, as Parallel Denoise does."""
    need = denoising_need(hosted.model, prompt, SamplerSettings())
    hosted.room(prompt, previews=previews).prepare(need, prompt.batch)

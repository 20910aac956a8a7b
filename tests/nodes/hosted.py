"""What nodes do with a hosted model before they use it."""

from mmada_parallel.mmp_core import SamplerSettings
from mmada_parallel.mmp_core.memory import denoising_estimate


def prepare(hosted, prompt, *, previews=False):
    """Load what denoising ``prompt`` needs, as Parallel Denoise does."""
    estimate = denoising_estimate(hosted.model, prompt, SamplerSettings())
    hosted.memory_budget(prompt, previews=previews).prepare(estimate, prompt.batch)

"""Denoising: a loop over steps that asks small policies (schedule, guidance, selection)."""

from .loop import Callback, denoise
from .policies import Policies
from .settings import SamplerSettings

__all__ = ["Callback", "Policies", "SamplerSettings", "denoise"]

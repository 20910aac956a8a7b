"""Denoising: a loop over steps that asks small policies (schedule, guidance, selection, cache)."""

"""The command ``mmada-parallel``."""

from .main import main

__all__ = ["main"]

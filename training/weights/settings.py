"""What an adapter is like. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from ...mmp_core.model.config import LAYER_SETS
from ...mmp_core.options import check, option


@dataclass(frozen=True)
class AdapterSettings:
    """Raises ``InputError`` for a value out of range."""

    rank: int = option(
        16,
        "Rank of the adapter. Higher: it can learn more, and needs more memory.",
        low=1,
        high=256,
    )
    layers: str = option(
        "all",
        "Which linear layers of the blocks get an adapter.",
        choices=tuple(LAYER_SETS),
        advanced=True,
    )

    def __post_init__(self) -> None:
        check(self)

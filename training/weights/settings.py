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
        "Rank of the adapter. A higher rank can learn more and needs more memory.",
        low=1,
        high=256,
    )
    rslora: bool = option(
        False,
        "Rank-stabilised LoRA: scales the adapter so that high ranks learn as fast as low ones.",
        advanced=True,
    )
    dora: bool = option(
        False,
        "DoRA: the adapter also learns the magnitude of the weights. It can learn more with a "
        "low rank, and takes longer.",
        advanced=True,
    )
    layers: str = option(
        "all",
        "Which linear layers of the blocks get an adapter.",
        choices=tuple(LAYER_SETS),
        advanced=True,
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def alpha(self) -> float:
        """Of :class:`LoRA`, whose adapter counts alpha / rank. rsLoRA (Kalajdzievski 2023,
        arXiv 2312.03732): rank / √rank, where plain adapters have 1."""
        return self.rank * self.rank**0.5 if self.rslora else float(self.rank)

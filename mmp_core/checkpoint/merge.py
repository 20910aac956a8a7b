"""Adapters added to weights for good, where a checkpoint is converted."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError, shown
from ..files import Tell
from ..model.lora import STRENGTH
from ..outside import check_kind
from .adapters import PEFT_CONFIG, PEFT_WEIGHTS, build_adapter, doubt_about, read_adapter
from .load import Model

_log = logging.getLogger(__name__)


def check_adapters(adapters: Sequence[tuple[str | Path, float]]) -> None:
    """Raise ``InputError`` for what is not pairs of a file and a strength."""
    name, expected = "adapters", "files of adapters, each with its strength"
    check_kind(adapters, list | tuple, name, expected)
    for pair in adapters:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(f"{name} is {shown(adapters)}; expected {expected}.")


class Merged:
    """The sum of some adapters: files or folders of LoRAs for ``model`` with their strengths.
    ``about``: what the converted file says of them. Raises ``InputError`` where one does not
    fit."""

    def __init__(
        self,
        model: Model,
        adapters: Sequence[tuple[str | Path, float]],
        tell: Tell = lambda: None,
    ):
        """``tell`` is called between parts of the files, and may raise."""
        self.about: list[dict[str, str | float]] = []
        self._parts: dict[str, list[tuple[float, Tensor, Tensor, Tensor | None]]] = {}
        for path, strength in adapters:
            if not STRENGTH.fits(strength):
                raise InputError(
                    f"The strength of {path} is {shown(strength)}; expected {STRENGTH.expected}."
                )
            state, metadata = read_adapter(path, tell)
            adapter = build_adapter(model, state, metadata, str(path), device="cpu", tell=tell)
            if doubt := doubt_about(model, metadata, str(path)):
                _log.warning(doubt)
            for layer in adapter.shapes:
                a, b = (state[f"{layer}.lora_{part}.weight"].float() for part in "AB")
                magnitude = state.get(f"{layer}.lora_magnitude_vector")
                self._parts.setdefault(layer, []).append((strength, a, b, magnitude))
            file = Path(path).expanduser()
            self.about.append({"name": file.name, "strength": strength, **_digests(file, tell)})

    def __contains__(self, layer: str) -> bool:
        return layer in self._parts

    def added(self, layer: str, weight: Tensor) -> Tensor:
        """``weight`` (outputs, inputs) with what the adapters add, in its dtype; computed in
        float32."""
        if layer not in self:
            return weight
        original = weight.float()
        added = original.clone()
        for strength, a, b, magnitude in self._parts[layer]:
            if magnitude is None:
                added.addmm_(b, a, alpha=strength)
            else:  # DoRA
                adapted = torch.addmm(original, b, a)
                lengths = adapted.norm(dim=1).clamp_min(1e-12)
                adapted *= (magnitude.float() / lengths)[:, None]
                added.add_(adapted - original, alpha=strength)
        result = added.to(weight.dtype)
        if original.isfinite().all() and not result.isfinite().all():
            raise InputError(
                f"The adapters make values of {layer} that are not finite numbers: lower their "
                "strengths."
            )
        return result


def _digests(adapter: Path, tell: Tell) -> dict[str, str]:
    """Of all that :func:`read_adapter` reads: another adapter of the same name is another one."""
    weights = adapter / PEFT_WEIGHTS if adapter.is_dir() else adapter
    digests, settings = {"sha256": sha256_of(weights, tell)}, weights.with_name(PEFT_CONFIG)
    return digests | ({"settings_sha256": sha256_of(settings)} if settings.is_file() else {})


def sha256_of(file: Path, tell: Tell = lambda: None) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            tell()
            digest.update(block)
    return digest.hexdigest()

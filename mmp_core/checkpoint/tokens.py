"""Tokens on disk: one safetensors file that knows which checkpoints its tokens belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError
from ..files import checked_path, existing_file, replacing, writing
from ..image.placement import Placement
from ..state import MASKED, TokenState
from .load import Model

FORMAT = "mmada-parallel tokens 1"


def token_identity(model: Model) -> dict[str, str]:
    """What tokens depend on: ``variant``, and checksums of ``vocabulary`` and ``codebook``.
    Checkpoints that were trained further from one another share them. The image tokenizer's weights
    must be loaded."""
    words = json.dumps(model.tokenizer.get_vocab(), sort_keys=True).encode()
    codes = torch.arange(model.layout.codebook_size, device=model.device).view(1, 1, -1)
    with torch.no_grad():
        vectors = model.image_tokenizer.vectors(codes).float().cpu().contiguous()
    return {
        "variant": model.variant.id,
        "vocabulary": hashlib.sha256(words).hexdigest(),
        "codebook": hashlib.sha256(vectors.numpy().tobytes()).hexdigest(),
    }


def save_tokens(
    path: str | Path, state: TokenState, model: Model, notes: Mapping[str, str] | None = None
) -> None:
    """Write ``state`` to ``path``, whole or not at all; the placement stands in the header.
    ``notes``: more metadata for it."""
    tensors = {"text": state.text.cpu().contiguous(), "image": state.image.cpu().contiguous()}
    metadata = {**(notes or {}), "format": FORMAT, **token_identity(model)}
    if state.placement:
        metadata["placement"] = json.dumps([asdict(one) for one in state.placement])
    path = checked_path(path, "The tokens")
    with writing(path), replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_tokens(path: str | Path, model: Model) -> TokenState:
    """Read what :func:`save_tokens` wrote. Raises ``InputError`` for a file that is no such file,
    is damaged, or holds tokens of a checkpoint with another variant, vocabulary or codebook than
    ``model``'s."""
    path = existing_file(path, "The tokens", "give a file that Save Tokens wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} holds no tokens: expected a file that Save Tokens wrote.")
            placement = _placement(metadata.get("placement", "null"))
            state = TokenState(file.get_tensor("text"), file.get_tensor("image"), placement)
    except InputError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path} cannot be read ({error}); save the tokens again.") from None
    for name, expected in token_identity(model).items():
        if metadata.get(name) != expected:
            raise InputError(
                f"{path} was made with another {name} than this checkpoint's: load the checkpoint "
                "that it was made with."
            )
    known = model.transformer.config.embedding_size, model.layout.codebook_size
    for name, end in zip(("text", "image"), known, strict=True):
        tokens = getattr(state, name)
        if tokens.numel() and not MASKED <= int(tokens.min()) <= int(tokens.max()) < end:
            raise InputError(f"{path} is damaged: its {name} has tokens outside 0 to {end - 1}.")
    return state


def _placement(written: str) -> tuple[Placement, ...] | None:
    """Raises ``ValueError``, ``TypeError`` or ``LookupError`` where it is none."""
    placements = json.loads(written)
    if placements is None:
        return None
    return tuple(Placement(**{n: tuple(v) for n, v in dict(one).items()}) for one in placements)

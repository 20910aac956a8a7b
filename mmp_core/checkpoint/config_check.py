"""What a checkpoint's ``config.json`` may say, and whether its tensors agree, before anything is
built: a number of layers or a width that the weights contradict costs nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, shown
from ..model.config import ModelConfig
from ..model.quantised import formats_of
from ..outside import check_fields, field
from .tensors import outline_of

_IDS = 2**24
_ROWS = field(int, 1, _IDS)
_ID = field(int, 0, _IDS)
FIELDS = {
    "d_model": field(int, 1, 2**16),
    "n_layers": field(int, 1, 1024),
    "n_heads": field(int, 1, 4096),
    "n_kv_heads": field(int, 1, 4096),
    "mlp_hidden_size": field(int, 1, 2**18),
    "embedding_size": _ROWS,
    "new_vocab_size": _ROWS,
    "vocab_size": _ROWS,
    "llm_vocab_size": _ROWS,
    "codebook_size": _ROWS,
    "num_new_special_tokens": _ID,
    "mask_token_id": _ID,
    "eos_token_id": _ID,
    "text_vocab_size": _ID,
    "rope_theta": field(float, above=0, high=1e15),
    "rms_norm_eps": field(float, above=0, high=1),
    "weight_tying": field(bool),
    "scale_logits": field(bool),
    "rope_full_precision": field(bool),
    "default_image_size": field(int, 1, 4096),
    "max_sequence_length": field(int, 1, 2**24),
    "default_text_length": field(int, 1, 4096),
    "model_type": field(str),
    "_name_or_path": field(str),
    "world": field(str),
    "recommended_guidance": field(float, 0, 100),
}
"""Those that are read; null counts as absent."""
_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d{1,9})\..+")


def checked_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``config`` without what is null. ``name``: of the file. Raises ``CheckpointError`` for a
    value of another type or out of range."""
    check_fields(config, FIELDS, name)
    said = {key: value for key, value in config.items() if value is not None}
    names = said.get("architectures", [])
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise CheckpointError(f"{name} has architectures {shown(names)}; expected a list of names.")
    return said


def check_transformer(config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str) -> None:
    """Raises ``CheckpointError`` where ``config``, once checked, does not go with ``weights``, or
    these are quantised in a way that is unknown here."""
    formats_of(weights)
    model = ModelConfig.from_dict(config)
    for of, by in (("d_model", "n_heads"), ("n_heads", "n_kv_heads")):
        if getattr(model, of) % getattr(model, by):
            raise CheckpointError(
                f"{name} has {of} {getattr(model, of)}, which is not a multiple of {by} "
                f"{getattr(model, by)}."
            )
    if model.head_dim % 2:
        raise CheckpointError(f"{name} has heads of {model.head_dim} numbers; expected pairs.")
    blocks = {int(match[1]) for key in weights if (match := _BLOCK.fullmatch(key))}
    if blocks and (len(blocks) != model.n_layers or max(blocks) >= model.n_layers):
        raise CheckpointError(
            f"{name} has n_layers {model.n_layers}, the weights {len(blocks)}: they do not "
            "match, or the weights are incomplete."
        )
    first = "model.transformer.blocks.0."
    for key, shape in {
        "model.transformer.wte.weight": (model.embedding_size, model.d_model),
        f"{first}k_proj.weight": (model.n_kv_heads * model.head_dim, model.d_model),
        f"{first}ff_proj.weight": (model.mlp_hidden_size, model.d_model),
    }.items():
        if f"{key}_scale_2" in weights:  # two numbers to a byte
            shape = (shape[0], shape[1] // 2)
        if key in weights and (stored := outline_of(weights, key).shape) != shape:
            raise CheckpointError(
                f"{key} has shape {stored}; {name} asks for {shape}: they do not match."
            )
    for key in ("mask_token_id", "eos_token_id"):
        if getattr(model, key) >= model.embedding_size:
            raise CheckpointError(
                f"{name} has {key} {getattr(model, key)}, the embedding {model.embedding_size} "
                "rows: they do not match."
            )

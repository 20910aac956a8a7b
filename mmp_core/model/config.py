"""The transformer's configuration, read from a checkpoint's ``config.json``, and the names of its
layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ..errors import CheckpointError

_FIXED = {
    # What the blocks below compute; any other value would silently give another model.
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "activation_type": ("silu", "swiglu"),
    "rope": (True,),
    "alibi": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "block_group_size": (1,),
}

ATTENTION_LAYERS = ("q_proj", "k_proj", "v_proj", "attn_out")
MLP_LAYERS = ("ff_proj", "up_proj", "ff_out")
BLOCK_LAYERS = ATTENTION_LAYERS + MLP_LAYERS
LAYER_SETS = {"all": BLOCK_LAYERS, "attention": ATTENTION_LAYERS, "mlp": MLP_LAYERS}
"""Sets of the blocks' linear layers that an adapter may be put on, by the names that widgets and
options offer; a new set is one more line here."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a LLaDA-style transformer. Field names follow the released
    ``config.json``. ``rope_theta`` has no default: LLaDA's class default (1e4) differs from the
    released value (5e5), so it must come from the checkpoint."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    embedding_size: int
    rope_theta: float
    rms_norm_eps: float
    mask_token_id: int
    eos_token_id: int
    weight_tying: bool = False
    scale_logits: bool = False
    rope_full_precision: bool = True

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    def linear_flop(self, tokens: int) -> float:
        """FLOPs of one block's linear layers for ``tokens``: multiply-adds, times two."""
        width, kv_width = self.d_model, self.n_kv_heads * self.head_dim
        return 2.0 * tokens * width * (2 * width + 2 * kv_width + 3 * self.mlp_hidden_size)

    def forward_flop(self, queries: int, keys: int | None = None) -> float:
        """FLOPs of all blocks for one sequence, attention over all keys included; no logits.
        ``queries``: positions computed. ``keys``: positions they attend to, by default as many."""
        keys = queries if keys is None else keys
        return self.n_layers * (self.linear_flop(queries) + 4.0 * queries * keys * self.d_model)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a released ``config.json``. Raises ``CheckpointError`` for a missing field or an
        architecture option that these blocks do not compute."""
        for name, allowed in _FIXED.items():
            if name in config and config[name] not in allowed:
                raise CheckpointError(
                    f"config.json has {name}={config[name]!r}; this model supports "
                    f"{' or '.join(repr(a) for a in allowed)}."
                )
        required = [field.name for field in fields(cls) if field.default is MISSING]
        required = [name for name in required if name not in ("n_kv_heads", "embedding_size")]
        missing = [name for name in required if config.get(name) is None]
        if missing:
            raise CheckpointError(
                f"config.json lacks {', '.join(missing)}: it is not a LLaDA/MMaDA configuration."
            )
        embedding_size = (
            config.get("new_vocab_size") or config.get("embedding_size") or config.get("vocab_size")
        )
        if not embedding_size:
            raise CheckpointError("config.json lacks embedding_size and vocab_size.")
        return cls(
            n_kv_heads=config.get("n_kv_heads") or config["n_heads"],
            embedding_size=embedding_size,
            weight_tying=config.get("weight_tying", False),
            scale_logits=config.get("scale_logits", False),
            rope_full_precision=config.get("rope_full_precision", True),
            **{name: config[name] for name in required},
        )

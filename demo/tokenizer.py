"""Word-level tokenizers and model configurations, of the toy world if nothing else is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..mmp_core.variants.mmada_parallel_a import EDIT, GENERATE
from .scenes import BACKGROUNDS, CONTENTS
from .tasks import Task
from .world import words

_FIRST = ("<|endoftext|>", "<|startoftext|>", "<|unk|>")
_STRUCTURE = (
    "<|mdm_mask|>",
    "<|newline|>",
    "<boi>",
    "<eoi>",
    "<uncondition>",
    "<answer>",
    "</answer>",
    "<system>",
    "</system>",
    "<user>",
    "</user>",
    "<|pad|>",
)
CODES = len(BACKGROUNDS) * len(CONTENTS)


def vocabulary(said: Sequence[str] | None = None) -> dict[str, int]:
    """Ids in order: end of text, the words ``said``, the mask, structure; image codes follow.

    Each system prompt is one token: in this small world it carries one bit.
    """
    said = words() if said is None else said
    return {w: i for i, w in enumerate((*_FIRST, EDIT, GENERATE, *said, *_STRUCTURE))}


def model_config(
    said: Sequence[str] | None = None,
    *,
    codes: int = CODES,
    side: int = 128,
    text_length: int = Task.text_length,
    world: str = "demo",
    **sizes: int,
) -> dict[str, Any]:
    """``config.json`` in the released format.

    ``said``: all words. ``world``: the dataset that judges it. ``codes``: of the image tokenizer.
    ``side``: of a picture, in pixels. ``sizes``: d_model, n_layers, n_heads, mlp_hidden_size.
    """
    ids = vocabulary(said)
    rows = -(-(len(ids) + codes) // 16) * 16
    return {
        "architectures": ["LLaDAForMultiModalGeneration"],
        "model_type": "llada",
        "activation_type": "silu",
        "alibi": False,
        "attention_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 10000.0,
        "scale_logits": False,
        "weight_tying": False,
        "max_sequence_length": 256,
        "vocab_size": rows,
        "embedding_size": rows,
        "codebook_size": codes,
        "text_vocab_size": len(ids),
        "mask_token_id": ids["<|mdm_mask|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "default_image_size": side,
        "default_text_length": text_length,
        "n_kv_heads": sizes["n_heads"],
        **sizes,
        **({} if world == "demo" else {"world": world}),
    }


def write_tokenizer(folder: Path, said: Sequence[str] | None = None) -> None:
    """Write the files of the tokenizer to ``folder``. One of given words, ``said``, writes
    sentences as people do, with no space before a comma."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary(said), unk_token="<|unk|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = (*_FIRST, EDIT, GENERATE, *_STRUCTURE)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|unk|>",
        "clean_up_tokenization_spaces": said is not None,
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))

"""The golden data of the reference implementation, and the checkpoints it was made with.

Every weight is int8 noise from a frozen generator times a power of two, so it is the same on every
machine and exact in fp32, bf16 and fp16; see README.md beside the golden data. Import as
``mmada_parallel.tests.parity.golden``.
"""

import functools
import hashlib
import json
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

EMBEDDING_ROWS = 134656
TINY_SHIFTS = dict(
    wte=6, q_proj=9, k_proj=9, v_proj=10, attn_out=10, ff_proj=10, up_proj=10, ff_out=10, head=8
)
MICRO_SHIFTS = dict(
    wte=6, q_proj=8, k_proj=8, v_proj=9, attn_out=9, ff_proj=9, up_proj=9, ff_out=9, head=7
)
MODELS = {
    "tiny-A": dict(
        variant="A",
        seed=1101,
        d=128,
        layers=4,
        heads=4,
        mlp=256,
        rows=EMBEDDING_ROWS,
        shift=TINY_SHIFTS,
    ),
    "tiny-M": dict(
        variant="M",
        seed=2202,
        d=128,
        layers=4,
        heads=4,
        mlp=256,
        rows=EMBEDDING_ROWS,
        shift=TINY_SHIFTS,
    ),
    "micro-A": dict(
        variant="A",
        seed=3303,
        d=32,
        layers=2,
        heads=2,
        mlp=64,
        rows=126720,
        codebook_size=256,
        shift=MICRO_SHIFTS,
    ),
}
SPECIAL_TOKENS = {
    "<|startoftext|>": 126080,
    "<|endoftext|>": 126081,
    "<|newline|>": 126084,
    "<|mdm_mask|>": 126336,
    "<|pad|>": 126339,
    "<system>": 126340,
    "</system>": 126341,
    "<user>": 126342,
    "</user>": 126343,
    "<|start_header_id|>": 126346,
    "<|end_header_id|>": 126347,
    "<|eot_id|>": 126348,
    "<boi>": 126349,
    "<eoi>": 126350,
    "<uncondition>": 126351,
    "<answer>": 126354,
    "</answer>": 126355,
}
TOKENIZER_ROWS_M = 126349
VQ_CONFIG = dict(
    _class_name="VQModel",
    _diffusers_version="0.34.0",
    act_fn="silu",
    block_out_channels=[16, 16, 32, 32, 32],
    down_block_types=["DownEncoderBlock2D"] * 5,
    in_channels=3,
    latent_channels=16,
    layers_per_block=1,
    lookup_from_codebook=True,
    mid_block_add_attention=False,
    norm_num_groups=8,
    norm_type="group",
    num_vq_embeddings=8192,
    out_channels=3,
    sample_size=32,
    scaling_factor=0.18215,
    up_block_types=["UpDecoderBlock2D"] * 5,
    vq_embed_dim=None,
)


KINDS = ("open", "lumina_dimoo")
"""Folders of golden cases of MMaDA-Parallel and of Lumina-DiMOO."""


@functools.cache
def golden_folders():
    """The folders with golden cases: what MMADA_GOLDEN names, which may hold either kind or both,
    side by side or each in its folder; the shared ones; or the subset kept here."""
    named = os.environ.get("MMADA_GOLDEN")
    if named and not Path(named).is_dir():
        raise FileNotFoundError(f"MMADA_GOLDEN names no folder: {named}")
    root = Path(named) if named else ROOT.parent / "shared" / "golden"
    folders = [folder for folder in (root, *(root / kind for kind in KINDS)) if folder.is_dir()]
    return folders or [ROOT / "tests" / "parity" / "data"]


def golden_files(pattern):
    """All golden files whose path below a folder of cases matches ``pattern``."""
    return sorted(path for folder in golden_folders() for path in folder.glob(pattern))


def golden_file(*parts):
    """Path of one golden file; skips the calling test where no folder holds it."""
    for path in (folder.joinpath(*parts) for folder in golden_folders()):
        if path.is_file():
            return path
    pytest.skip(f"{Path(*parts)} is in none of the golden folders {golden_folders()}")


def case_files(pattern, *, lumina_dimoo):
    """Files of cases of Lumina-DiMOO, or all others, known or not."""
    return [
        path
        for path in golden_files(pattern)
        if path.stem != "weights_sha256"
        and (json.loads(path.read_text()).get("variant") == "D") == lumina_dimoo
    ]


def weight_sums():
    """{checkpoint: {tensor: sha256 of its fp32 bytes}}; skips where the list is not at hand."""
    folders = golden_folders()
    for folder in (*folders, *(folder.parent for folder in folders)):
        if (folder / "weights_sha256.json").is_file():
            return json.loads((folder / "weights_sha256.json").read_text())
    pytest.skip(f"weights_sha256.json is neither in nor above {folders}")


def picture(seed, width, height):
    """The recipe's test picture: uint8 (height, width, 3), colour blocks of 8x8 plus noise."""
    stream = np.random.RandomState(seed)
    down, across = (height + 7) // 8, (width + 7) // 8
    blocks = np.frombuffer(stream.bytes(down * across * 3), np.uint8).reshape(down, across, 3)
    colours = blocks.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.int32)
    noise = np.frombuffer(stream.bytes(height * width * 3), np.int8).reshape(height, width, 3)
    return np.clip(colours + noise.astype(np.int32) // 4, 0, 255).astype(np.uint8)


def sha256(array):
    """Checksum of an array's bytes, as the golden data states them."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def dense(seed, name, shape, shift):
    """Float32 noise for one tensor, keyed by seed and name."""
    return _noise(seed, name, shape).astype(np.float32) * np.float32(2.0**-shift)


def norm(seed, name, shape):
    """Float32 norm gains around 1, keyed by seed and name."""
    return (1.0 + (_noise(seed, name, shape) // 8).astype(np.float32) / 64.0).astype(np.float32)


def _noise(seed, name, shape):
    key = f"{seed}/{name}".encode()
    stream = np.random.RandomState(zlib.crc32(key) & 0xFFFFFFFF)
    return np.frombuffer(stream.bytes(int(np.prod(shape))), dtype=np.int8).reshape(shape)


def tokenizer_fill(shapes, seed):
    """Recipe weights of an image tokenizer: {name: shape} to {name: float32 array}."""
    filled = {}
    for name, shape in shapes.items():
        if name == "quantize.embedding.weight":
            filled[name] = dense(seed, name, shape, 6)
        elif len(shape) >= 2:
            fan_in = int(np.prod(shape[1:]))
            filled[name] = dense(seed, name, shape, round(np.log2(73.9 * np.sqrt(fan_in))))
        elif name.endswith(".bias"):
            filled[name] = dense(seed, name, shape, 10)
        else:
            filled[name] = norm(seed, name, shape)
    return filled


def vq_fill(shapes):
    """Recipe weights of variant A's image tokenizer."""
    return tokenizer_fill(shapes, 4404)


def magvit_fill(shapes):
    """Recipe weights of variant M's image tokenizer (parameters only, no buffers)."""
    return tokenizer_fill(shapes, 5505)


def vq_shapes():
    """{name: shape} of the recipe's Amused-VQ."""
    from mmada_parallel.mmp_core.image.amused import AmusedVQ

    return {k: tuple(v.shape) for k, v in AmusedVQ(VQ_CONFIG, device="meta").state_dict().items()}


def model_weights(name):
    """Yields (tensor name, float32 array) of a recipe transformer."""
    spec = MODELS[name]
    seed, shift, d, mlp = spec["seed"], spec["shift"], spec["d"], spec["mlp"]
    shapes = dict(
        q_proj=(d, d),
        k_proj=(d, d),
        v_proj=(d, d),
        attn_out=(d, d),
        ff_proj=(mlp, d),
        up_proj=(mlp, d),
        ff_out=(d, mlp),
    )
    table = (spec["rows"], d)
    trunk = "model.transformer."
    yield trunk + "wte.weight", dense(seed, trunk + "wte.weight", table, shift["wte"])
    for i in range(spec["layers"]):
        block = f"{trunk}blocks.{i}."
        for part in ("attn_norm", "ff_norm"):
            yield f"{block}{part}.weight", norm(seed, f"{block}{part}.weight", (d,))
        for part, shape in shapes.items():
            key = f"{block}{part}.weight"
            yield key, dense(seed, key, shape, shift[part])
    yield trunk + "ln_f.weight", norm(seed, trunk + "ln_f.weight", (d,))
    yield trunk + "ff_out.weight", dense(seed, trunk + "ff_out.weight", table, shift["head"])


def model_config(name, dtype="fp32"):
    """config.json of a recipe transformer, as a dict."""
    spec = MODELS[name]
    is_a = spec["variant"] == "A"
    config = dict(
        architectures=["LLaDAForMultiModalGeneration" if is_a else "MMadaModelLM"],
        model_type="llada" if is_a else "mmada",
        activation_type="silu",
        alibi=False,
        alibi_bias_max=8.0,
        attention_dropout=0.0,
        attention_layer_norm=False,
        attention_layer_norm_with_affine=True,
        bias_for_layer_norm=False,
        block_group_size=1,
        block_type="llama",
        d_model=spec["d"],
        embedding_dropout=0.0,
        embedding_size=spec["rows"],
        eos_token_id=126081,
        flash_attention=False,
        include_bias=False,
        include_qkv_bias=False,
        init_cutoff_factor=None,
        init_device="meta",
        init_fn="mitchell",
        init_std=0.02,
        input_emb_norm=False,
        layer_norm_type="rms",
        layer_norm_with_affine=True,
        mask_token_id=126336,
        max_sequence_length=4096,
        mlp_hidden_size=spec["mlp"],
        mlp_ratio=4,
        multi_query_attention=None,
        n_heads=spec["heads"],
        n_kv_heads=spec["heads"],
        n_layers=spec["layers"],
        pad_token_id=126081,
        precision="amp_bf16",
        residual_dropout=0.0,
        rms_norm_eps=1e-05,
        rope=True,
        rope_full_precision=True,
        rope_theta=500000.0,
        scale_logits=False,
        use_cache=False,
        vocab_size=spec["rows"],
        weight_tying=False,
        torch_dtype=str(DTYPES[dtype]).removeprefix("torch."),
    )
    if "codebook_size" in spec:
        config["codebook_size"] = spec["codebook_size"]
    if not is_a:
        config.update(
            llm_vocab_size=126464,
            new_vocab_size=spec["rows"],
            codebook_size=8192,
            num_vq_tokens=1024,
            num_new_special_tokens=0,
            gradient_checkpointing=False,
        )
    return config


def build_checkpoint(name, out, dtype="fp32"):
    """Writes recipe checkpoint ``name`` (tiny-A, tiny-M, micro-A) in the released folder layout."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    weights = {k: torch.from_numpy(v).to(DTYPES[dtype]) for k, v in model_weights(name)}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(model_config(name, dtype), indent=1))
    variant = MODELS[name]["variant"]
    _write_tokenizer(out, variant)
    if variant == "A":
        folder = out / "vqvae"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(VQ_CONFIG, indent=1))
        save_file(
            {k: torch.from_numpy(v) for k, v in vq_fill(vq_shapes()).items()},
            folder / "diffusion_pytorch_model.safetensors",
            metadata={"format": "pt"},
        )
    return out


def _write_tokenizer(out, variant):
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    specials = {
        token: i for token, i in SPECIAL_TOKENS.items() if variant == "A" or i < TOKENIZER_ROWS_M
    }
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    taken = set(specials.values())
    vocab |= {f"<u{i}>": i for i in range(len(vocab), max(taken)) if i not in taken}
    tokenizer = Tokenizer(BPE(vocab=vocab | specials, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in sorted(specials, key=specials.get)
        ]
    )
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            dict(
                tokenizer_class="PreTrainedTokenizerFast",
                bos_token="<|startoftext|>",
                eos_token="<|endoftext|>",
                pad_token="<|endoftext|>",
                clean_up_tokenization_spaces=False,
                model_max_length=int(1e30),
            )
        )
    )


@functools.cache
def _session_folder():
    return tempfile.TemporaryDirectory(prefix="mmada-golden-")


@functools.cache
def checkpoint(name, dtype="fp32"):
    """Folder of recipe checkpoint ``name``, built once per test session and removed after it."""
    return build_checkpoint(name, Path(_session_folder().name) / f"{name}-{dtype}", dtype)


def refuse_unknown(understood):
    """Fail on what a case has and its test does not know; {what: (there, known)}."""
    for what, (there, known) in understood.items():
        assert not set(there) - known, f"unknown {what}: {sorted(set(there) - known)}"


def with_long_ids(tensors):
    """``tensors`` with the ids, which are stored in 32 bits, in 64."""
    return {n: t.long() if t.dtype == torch.int32 else t for n, t in tensors.items()}

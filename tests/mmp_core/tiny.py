"""Checkpoints of a few thousand random weights in the released layout, and pictures for them."""

import json
from pathlib import Path

import torch
from mmada_parallel.mmp_core import MASKED, TokenState
from mmada_parallel.mmp_core.image.amused import AmusedVQ
from mmada_parallel.mmp_core.image.magvit import MagvitV2
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer
from mmada_parallel.mmp_core.variants.registry import variant_named
from safetensors.torch import save_file

WORDS = ("a", "red", "blue", "circle", "square", "make", "it", "left", "of", "the", ".")
SPECIAL = {
    "A": (
        "<|endoftext|>",
        "<|startoftext|>",
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
    ),
    "M": (
        "<|endoftext|>",
        "<|startoftext|>",
        "<|mdm_mask|>",
        "<|soi|>",
        "<|eoi|>",
        "<|t2i|>",
        "<|interleave|>",
    ),
}
SPECIAL["D"] = (*SPECIAL["A"], "<|pad|>")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SPECIAL["8B"] = (*SPECIAL["M"], "<|mmu|>", *_HEADERS)
CODES = {"A": 12, "M": 2**13, "D": 12, "8B": 2**13}
VQ = {
    "_class_name": "VQModel",
    "block_out_channels": [8, 8, 8],
    "latent_channels": 4,
    "layers_per_block": 1,
    "mid_block_add_attention": False,
    "norm_num_groups": 4,
    "num_vq_embeddings": CODES["A"],
}
MAGVIT = {"ch": 32}
DOWNSAMPLE = {"A": 4, "M": 16, "D": 4, "8B": 16}


def tokenizer(variant):
    return tokenizer_of(SPECIAL[variant])


def tokenizer_of(special):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ("<|unk|>", *WORDS, *special)
    vocabulary = {name: i for i, name in enumerate(names)}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.add_special_tokens([AddedToken(t, special=True) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        unk_token="<|unk|>",
        bos_token="<|startoftext|>" if "<|startoftext|>" in special else None,
        eos_token="<|endoftext|>",
    )


def config(variant):
    tokens = tokenizer(variant)
    own = {
        "A": {"architectures": ["LLaDAForMultiModalGeneration"], "text_vocab_size": len(tokens)},
        "M": {"architectures": ["MMadaModelLM"], "llm_vocab_size": len(tokens)},
    }
    own["D"] = own["A"] | {"mmada_parallel_family": "D"}
    own["8B"] = own["M"] | {"mmada_parallel_family": "8B"}
    sizes = {"default_image_size": 4 * DOWNSAMPLE[variant], "default_text_length": 5}
    return own[variant] | config_of(tokens, CODES[variant]) | sizes


def config_of(tokens, codes):
    rows = len(tokens) + codes
    return {
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 2,
        "mlp_hidden_size": 24,
        "rope": True,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "embedding_size": rows,
        "vocab_size": rows,
        "codebook_size": codes,
        "eos_token_id": tokens.eos_token_id,
        "mask_token_id": tokens.convert_tokens_to_ids("<|mdm_mask|>"),
    }


def transformer(variant, dtype=torch.float32):
    return transformer_of(config(variant), dtype)


def transformer_of(config, dtype=torch.float32):
    """Random weights, of a size that leaves tokens neither all alike nor certain."""
    model = MaskedDiffusionTransformer(ModelConfig.from_dict(config), dtype=dtype)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name and "ln_f" not in name:
                weight.normal_(0, 0.2, generator=generator)
    return model.requires_grad_(False).eval()


class TinyModel:
    """What the sampler needs of a model; counts the transformer's forwards."""

    def __init__(self, variant, dtype=torch.float64):
        self.variant, self.device = variant_named(variant), torch.device("cpu")
        self.layout = self.variant.layout(tokenizer(variant), config(variant))
        self.transformer = transformer(variant, dtype)
        self.forwards = 0
        self.transformer.register_forward_hook(self._count)

    def _count(self, module, inputs, output):
        self.forwards += 1


def prompt(layout, *, batch=1, text=4, grid=(2, 3), image=True, locked=0.0, seed=0):
    """A prompt of random tokens, of whose answer the share ``locked`` is decided."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(shape, size, share):
        values = torch.randint(0, size, (batch, *shape), generator=generator)
        keep = torch.rand(values.shape, generator=generator) < share
        return torch.where(keep, values, MASKED)

    state = TokenState(
        tokens((text,), len(WORDS), locked), tokens(grid, layout.codebook_size, locked)
    )
    codes = tokens((2, 2), layout.codebook_size, 1.0) if image else None
    return layout.encode("make it red", codes, state)


def write_checkpoint(folder, variant, shards=1):
    """The released layout; returns ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(variant)))
    tokenizer(variant).save_pretrained(folder)
    weights = transformer(variant).state_dict()
    names = list(weights)
    files = {name: f"model-{i % shards + 1:05}.safetensors" for i, name in enumerate(names)}
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
    else:
        for file in set(files.values()):
            save_file({n: weights[n] for n in names if files[n] == file}, folder / file)
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": files}))
    write_image_tokenizer(folder, variant)
    return folder


def write_image_tokenizer(folder, variant):
    torch.manual_seed(0)
    if variant in ("A", "D"):
        own, config, name = AmusedVQ(VQ), VQ, "vqvae/diffusion_pytorch_model.safetensors"
    else:
        own, config, name = MagvitV2(MAGVIT), MAGVIT, "magvitv2/model.safetensors"
    file = Path(folder) / name
    file.parent.mkdir(exist_ok=True)
    save_file(own.state_dict(), file)
    (file.parent / "config.json").write_text(json.dumps(config))

"""Estimates of memory against counted peaks: at most a tenth too small or twice too large."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core import Prompt, SamplerSettings, TokenState, denoise, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.errors import InputError
from mmada_parallel.mmp_core.files import readable_size
from mmada_parallel.mmp_core.memory import (
    MemoryEstimate,
    OutOfMemory,
    decoding_bytes,
    denoising_estimate,
    dequantised_bytes,
    forward_bytes,
    is_out_of_memory,
    module_bytes,
    stored_bytes,
)
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.formats import FORMATS
from mmada_parallel.mmp_core.model.lora import Adapter, LayerShape, adaptable_layers
from mmada_parallel.mmp_core.model.quantised import WeightOnlyLinear, replace_linears
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer
from mmada_parallel.mmp_core.variants.registry import variant_named
from mmada_parallel.tests.live_bytes import most_bytes
from mmada_parallel.tests.mmp_core import tiny
from mmada_parallel.tests.training.adapted import quantised
from mmada_parallel.training.loop.memory import update_bytes
from mmada_parallel.training.loop.run import recomputing
from mmada_parallel.training.weights.policies import LoRA
from safetensors.torch import load_file

FLOATS = [torch.float32, torch.bfloat16]


def transformer(dtype, **changes):
    sizes = {
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 192,
        "embedding_size": 500,
        "rope_theta": 1e4,
        "rms_norm_eps": 1e-5,
        "mask_token_id": 1,
        "eos_token_id": 0,
    } | changes
    torch.manual_seed(0)
    return MaskedDiffusionTransformer(ModelConfig(**sizes), dtype=dtype).requires_grad_(False)


def check(estimate, measured):
    assert measured <= 1.1 * estimate and estimate <= 2 * measured


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_heads": 2}, {"mlp_hidden_size": 32}, {"rope_full_precision": False}]
)
@torch.no_grad()
def test_a_forward_holds_what_is_estimated_however_deep(dtype, changes):
    ids = torch.zeros(3, 100, dtype=torch.int64)
    for layers in (2, 8):
        model = transformer(dtype, n_layers=layers, **changes)
        check(forward_bytes(model.config, 300, dtype.itemsize), most_bytes(lambda m=model: m(ids)))


WORDS = 3000
"""Of a model of variant M, whose 8,192 codes make the picture's logits large."""


def of_many_words():
    model = tiny.TinyModel("M", torch.float32)
    model.layout.text_choices = range(WORDS)
    return model


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "text, grid", [(40, (1, 1)), (2, (4, 4)), (8, (12, 12)), (0, (6, 6)), (40, (0, 0))]
)
@pytest.mark.parametrize(
    "choices",
    [
        {"text_temperature": 0.0, "image_temperature": 0.0, "joint_guidance": 0.0},
        {"text_temperature": 1.0, "image_temperature": 1.0, "joint_guidance": 0.0},
        {"text_temperature": 1.0, "reasoning_guidance": 2.0, "text_guidance": 1.0},
        {"speed": "cached"},
        {"speed": "fastest", "reasoning_guidance": 2.0},
    ],
)
def test_denoising_holds_what_is_estimated(dtype, text, grid, choices):
    model = of_many_words()
    model.transformer.to(dtype)
    settings = SamplerSettings(text_steps=3, image_steps=2, **choices)
    for batch in (1, 3):
        prompt = tiny.prompt(model.layout, batch=batch, text=text, grid=grid)
        estimate = denoising_estimate(model, prompt, settings)
        measured = most_bytes(lambda p=prompt: denoise(model, p, settings))
        check(estimate.total(batch), measured)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_the_reference_chooses_words_from_all_ids(dtype, temperature, guidance):
    """Of which the model of variant M has 8,211, 14 of them words."""
    model = tiny.TinyModel("M", torch.float32)
    model.transformer.to(dtype)
    settings = SamplerSettings.upstream(
        "M", text_steps=3, image_steps=2, text_temperature=temperature, reasoning_guidance=guidance
    )
    prompt = tiny.prompt(model.layout, text=40, grid=(1, 1))
    estimate = denoising_estimate(model, prompt, settings)
    check(estimate.total(1), most_bytes(lambda: denoise(model, prompt, settings)))


def test_adapters_count():
    model = of_many_words()
    settings = SamplerSettings(text_steps=3, image_steps=2, joint_guidance=0.0)
    prompt = tiny.prompt(model.layout, batch=2, text=4, grid=(30, 30))
    shapes = {
        name: LayerShape(layer.in_features, layer.out_features, 2)
        for name, layer in adaptable_layers(model.transformer).items()
    }
    adapter = Adapter(shapes)
    for parameter in adapter.parameters():
        torch.nn.init.ones_(parameter)
    bypass = adapter.attach(model.transformer)
    measured = most_bytes(lambda: denoise(model, prompt, settings))
    bypass.remove()
    check(denoising_estimate(model, prompt, settings).total(2), measured)


def test_recorded_steps_count():
    model = tiny.TinyModel("A")
    prompt = tiny.prompt(model.layout, text=50, grid=(40, 40))
    settings = SamplerSettings(text_steps=40, image_steps=40)
    few, all_ = (denoising_estimate(model, prompt, settings, record=n) for n in (0, None))
    measured = [most_bytes(lambda n=n: denoise(model, prompt, settings, record=n)) for n in (0, 40)]
    assert (all_.total(1) - few.total(1)) == pytest.approx(measured[1] - measured[0], rel=0.3)


def test_samples_that_fit():
    estimate = MemoryEstimate(fixed=100, working=40, retained=10)
    assert estimate.total(3) == 250
    assert [estimate.samples_in(free, 8) for free in (0, 149, 250, 299, 10**6)] == [1, 1, 3, 3, 8]
    assert estimate.samples_in(float("inf"), 8) == 8
    assert isinstance(estimate.samples_in(250.0, 8), int)


@pytest.mark.parametrize("kind", [None, "fp8", "int8"])
def test_stored_weights_are_counted_to_the_byte(tmp_path, kind):
    folder = tiny.write_checkpoint(tmp_path / "own", "A")
    convert(folder, tmp_path / "x.safetensors", quantize=kind or "none")
    stored = load_checkpoint(tmp_path / "x.safetensors").transformer
    sizes = {
        name: tensor.numel() * tensor.element_size()
        for name, tensor in load_file(tmp_path / "x.safetensors").items()
        if name.startswith("model.") and not name.endswith(".comfy_quant")
    }
    assert module_bytes(stored) == sum(sizes.values())
    assert module_bytes(stored) == stored_bytes(stored.config, torch.float32, kind)


@torch.no_grad()
def test_a_dequantised_layer_is_counted(tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "own", "A")
    convert(folder, tmp_path / "x.safetensors", quantize="int8")
    plain, stored = (load_checkpoint(path) for path in (folder, tmp_path / "x.safetensors"))
    prompt = tiny.prompt(plain.layout)
    found = [
        denoising_estimate(model, prompt, SamplerSettings()).fixed for model in (plain, stored)
    ]
    largest = max(
        layer.weight.numel() for layer in stored.transformer.layers["blocks"][0].children()
    )
    assert found[1] - found[0] == 2 * 4 * largest


def check_training(model, *, length, again):
    """A step on two sequences, whose first 30 tokens count, against the estimate."""
    dtype = model.layers["ln_f"].weight.dtype
    ids, chosen = torch.zeros(2, length, dtype=torch.int64), torch.zeros(60, dtype=torch.int64)
    lora = LoRA(model, rank=4)
    trained = sum(p.numel() for _, p in lora.named_parameters())
    assert trained == adapter_parameters(model.config, 4)
    optimizer = torch.optim.AdamW(lora.parameters())

    def step():
        with recomputing(model, again):
            logits = model.logits(model(ids)[:, :30].flatten(0, 1)).float()
            torch.nn.functional.cross_entropy(logits, chosen).backward()
        optimizer.step()

    before = sum(p.numel() * 4 for p in lora.parameters())
    estimate = update_bytes(
        model.config, dtype.itemsize, 2 * length, 2 * 30 * 500, trained, checkpointing=again
    )
    estimate += dequantised_bytes(model, dtype.itemsize)
    check(estimate, before + most_bytes(step))


def adapter_parameters(config, rank):
    """Of low-rank matrices of ``rank`` on all linear layers of the blocks."""
    width, kv, mlp = config.d_model, config.n_kv_heads * config.head_dim, config.mlp_hidden_size
    per_block = 2 * (width + width) + 2 * (width + kv) + 3 * (width + mlp)
    return config.n_layers * rank * per_block


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("layers", [2, 6])
def test_a_training_step_holds_what_is_estimated(dtype, again, layers):
    model = transformer(dtype, n_layers=layers)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.05)
    check_training(model, length=100, again=again)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("again, layers", [(False, 12), (True, 2)])
def test_training_keeps_no_dequantised_weight(kind, again, layers):
    """They would outweigh the activations: few tokens, wide layers. With checkpointing those of one
    block would."""
    model = transformer(torch.bfloat16, n_layers=layers, d_model=384, mlp_hidden_size=1152)
    check_training(quantised(model, kind), length=32, again=again)


RELEASED = ModelConfig(
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    mlp_hidden_size=12288,
    embedding_size=134656,
    rope_theta=5e5,
    rms_norm_eps=1e-5,
    mask_token_id=126336,
    eos_token_id=126081,
)
TOKENS = 2434
"""Of an edit of 512x512 with 256 words."""


def test_checkpointing_is_what_lets_a_large_model_be_trained():
    activations = [update_bytes(RELEASED, 2, TOKENS, 0, 0, again) for again in (False, True)]
    assert [readable_size(size) for size in activations] == ["14.9 GB", "1.3 GB"]
    parameters = update_bytes(RELEASED, 2, 0, 0, adapter_parameters(RELEASED, 16), True)
    assert readable_size(parameters) == "0.7 GB"


@pytest.mark.parametrize(
    "kind, row",
    [
        (None, "bf16 or fp16"),
        ("fp8", "fp8 or int8 (converted)"),
        ("nvfp4", "nvfp4 (converted)"),
    ],
)
def test_the_help_page_tells_what_is_computed(kind, row):
    model = MaskedDiffusionTransformer(RELEASED, dtype=torch.bfloat16, device="meta")
    if kind:
        linears = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
        own = {name: FORMATS[kind] for name in linears if ".blocks." in name}
        replace_linears(model, own, WeightOnlyLinear)
    sequence = SimpleNamespace(ids=torch.zeros(1, TOKENS, dtype=torch.int64))
    layout = SimpleNamespace(
        model_input=lambda *_: sequence, text_choices=range(126336), codebook_size=8192
    )
    known = SimpleNamespace(
        transformer=model, layout=layout, variant=variant_named("A"), device=torch.device("meta")
    )
    empty = torch.zeros(1, 0, dtype=torch.int64)
    prompt = Prompt(empty, empty, None, TokenState.masked(1, 256, (32, 32)))

    def need(samples, speed="exact"):
        found = denoising_estimate(known, prompt, SamplerSettings(speed=speed), record=128)
        return readable_size(found.total(samples))

    weights = readable_size(module_bytes(model))
    page = (Path(__file__).parents[2] / "web" / "docs" / "MMaDAParallelLoader.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {row} |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert [*cells[1:2], *cells[3:]] == [weights, need(1), need(4), need(1, "cached")]


WIDTHS = {"released": [128, 256, 256], "demo": [16, 16, 32, 64], "one level": [32]}


@pytest.mark.parametrize("widths", [*WIDTHS.values(), None], ids=[*WIDTHS, "magvit"])
@torch.no_grad()
def test_a_picture_is_counted_where_it_is_widest(widths):
    from mmada_parallel.mmp_core.image.amused import AmusedVQ
    from mmada_parallel.mmp_core.image.magvit import MagvitV2

    if widths is None:
        tokenizer = MagvitV2({})
    else:
        tokenizer = AmusedVQ(tiny.VQ | {"block_out_channels": widths, "norm_num_groups": 8})
    tokenizer.requires_grad_(False)
    side = 64 // tokenizer.downsample
    codes, pixels = torch.zeros(1, side, side, dtype=torch.int64), torch.zeros(1, 3, 64, 64)
    estimate = decoding_bytes(tokenizer, (side, side))
    check(estimate, most_bytes(lambda: tokenizer.decode(codes)))
    check(estimate, most_bytes(lambda: tokenizer.encode(pixels)))


def test_a_picture_needs_its_memory_once_and_between_steps():
    estimate = MemoryEstimate(fixed=100, working=50, retained=10, picture=400)
    assert [estimate.total(n) for n in (1, 8, 10)] == [510, 580, 700]
    assert [estimate.samples_in(free, 20) for free in (505, 510, 579, 580, 700)] == [1, 1, 7, 8, 10]


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (MemoryError(), True),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_host_recognises_ours_and_a_user_can_read_it():
    assert issubclass(OutOfMemory, InputError)
    assert issubclass(OutOfMemory, torch.cuda.OutOfMemoryError)


def lumina_of_many_words():
    model = tiny.TinyModel("D", torch.float32)
    model.transformer = tiny.transformer_of({**tiny.config("D"), "embedding_size": WORDS})
    return model


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("preset", ["corrected", "upstream"])
@pytest.mark.parametrize(
    "choices",
    [
        {"text_temperature": 0.0},
        {"text_temperature": 1.0},
        {"text_temperature": 1.0, "reasoning_guidance": 2.0, "speed": "cached"},
    ],
)
def test_a_text_alone_holds_what_is_estimated(dtype, preset, choices):
    model = lumina_of_many_words()
    model.transformer.to(dtype)
    model.layout.text_choices = range(WORDS)
    settings = SamplerSettings(
        preset=preset, text_steps=4, block_length=4, joint_guidance=0.0, **choices
    )
    picture = torch.zeros(1, 12, 12, dtype=torch.int64)
    prompt = model.layout.encode("make it red", picture, TokenState.masked(1, 8, (0, 0)))
    estimate = denoising_estimate(model, prompt, settings).total(1)
    check(estimate, most_bytes(lambda: denoise(model, prompt, settings)))

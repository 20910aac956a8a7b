import json
import re

import pytest
import torch
from mmada_parallel.mmp_core import CheckpointError, InputError, load_checkpoint, memory
from mmada_parallel.mmp_core.checkpoint.load import build_model, load_weights, open_checkpoint
from mmada_parallel.mmp_core.model.transformer import TorchOperations
from mmada_parallel.tests.mmp_core import tiny
from safetensors.torch import load_file, save_file

NORM = "model.transformer.ln_f.weight"


@pytest.fixture(params="AM", scope="module")
def stored(request, tmp_path_factory):
    """(variant, folder): unchanged by the tests."""
    folder = tmp_path_factory.mktemp(f"stored-{request.param}")
    return request.param, tiny.write_checkpoint(folder, request.param)


@pytest.fixture
def folder(tmp_path):
    """A variant-A folder to spoil."""
    return tiny.write_checkpoint(tmp_path / "checkpoint", "A")


def test_loads_the_released_layout(stored):
    variant, folder = stored
    model = load_checkpoint(folder)
    assert (model.variant.id, model.device) == (variant, torch.device("cpu"))
    assert model.default_image_size == 4 * model.downsample == 4 * tiny.DOWNSAMPLE[variant]
    assert model.default_text_length == 5
    for name, weight in tiny.transformer(variant).state_dict().items():
        assert torch.equal(model.transformer.state_dict()[name], weight)
    modules = (model.transformer, model.image_tokenizer)
    assert not any(p.requires_grad or p.is_meta for m in modules for p in m.parameters())
    assert not any(m.training for m in modules)


def test_shards(tmp_path):
    folder = tiny.write_checkpoint(tmp_path, "A", shards=3)
    weights = tiny.transformer("A").state_dict()
    loaded = load_checkpoint(folder).transformer.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    (folder / "model-00002.safetensors").unlink()
    expect(folder, "model-00002.safetensors missing in")


def test_dtype(folder, monkeypatch):
    model = load_checkpoint(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.transformer.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.image_tokenizer.parameters()} == {torch.float32}
    weights = tiny.transformer("A").state_dict()
    save_file({n: w.half() for n, w in weights.items()}, folder / "model.safetensors")
    assert load_checkpoint(folder).transformer.layers["wte"].weight.dtype == torch.float32
    monkeypatch.setattr(memory, "_SMALL", 1)  # as of a large model, which would not fit
    assert load_checkpoint(folder).transformer.layers["wte"].weight.dtype == torch.float16


def test_building_and_loading_are_separate_and_layers_are_injected(folder):
    made = []

    class Operations(TorchOperations):
        class Linear(torch.nn.Linear):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                made.append(self)

    def attention(q, k, v):
        return torch.zeros_like(q).transpose(1, 2).flatten(2)

    source = open_checkpoint(folder)
    model = build_model(source, operations=Operations, attention=attention)
    assert len(made) == 15 and all(p.is_meta for p in model.transformer.parameters())
    load_weights(model, source, "cpu")
    ids = torch.arange(6)[None]
    hidden = model.transformer(ids)
    assert not torch.equal(hidden, load_checkpoint(folder).transformer(ids))
    full = model.transformer.logits(hidden)
    assert torch.allclose(model.transformer.logits(hidden, slice(2, 5)), full[..., 2:5], atol=1e-6)


def test_magvit_file_beside_or_elsewhere(stored, tmp_path):
    variant, _ = stored
    if variant == "A":
        pytest.skip("variant A's tokenizer comes with it")
    folder = tiny.write_checkpoint(tmp_path / "own", "M")
    (folder / "magvitv2").rename(tmp_path / "magvitv2")
    assert load_checkpoint(folder).image_tokenizer.codebook_size == 2**13
    elsewhere = tmp_path / "downloads"
    (tmp_path / "magvitv2").rename(elsewhere)
    expect(folder, r"put the files of showlab/magvitv2 into .*own.magvitv2")
    weights = load_file(elsewhere / "model.safetensors")
    (elsewhere / "model.safetensors").unlink()
    torch.save(weights, elsewhere / "pytorch_model.bin")
    for given in (elsewhere, elsewhere / "pytorch_model.bin"):
        model = load_checkpoint(folder, image_tokenizer_path=given)
        assert torch.equal(
            model.image_tokenizer.state_dict()["encoder.conv_in.bias"],
            weights["encoder.conv_in.bias"],
        )
    torch.save({"x": torch.nn.Linear(1, 1)}, elsewhere / "pytorch_model.bin")
    expect(folder, "pytorch_model.bin cannot be read", image_tokenizer_path=elsewhere)
    expect(folder, "No image tokenizer at", image_tokenizer_path=tmp_path / "nowhere")


def expect(folder, message, **options):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder, **options)
    assert "\n" not in str(caught.value)


def test_missing_files(folder):
    expect(folder / "nowhere", "No checkpoint at .*nowhere: expected a folder with config")
    for file, message in {
        "vqvae/config.json": r"config.json is missing in .*vqvae",
        "vqvae/diffusion_pytorch_model.safetensors": r"put the vqvae folder .* into .*checkpoint",
        "tokenizer.json": r"tokenizer.json is missing in .*checkpoint: put the tokenizer files",
        "model.safetensors": r"No weights in .*: expected model.safetensors, or",
        "config.json": r"config.json is missing in .*checkpoint",
    }.items():
        kept = (folder / file).read_bytes()
        (folder / file).unlink()
        expect(folder, message)
        (folder / file).write_bytes(kept)
    load_checkpoint(folder)


def test_damaged_files(folder):
    for file, content, message in (
        ("model.safetensors", b"\x00" * 40, "model.safetensors cannot be read"),
        ("config.json", b"{", "config.json is not JSON and cannot be read"),
        ("config.json", b"[1]", "is not a JSON object"),
        ("tokenizer.json", b"{}", "tokenizer.json in .* cannot be read"),
        ("vqvae/diffusion_pytorch_model.safetensors", b"", "cannot be read"),
    ):
        kept = (folder / file).read_bytes()
        (folder / file).write_bytes(content)
        expect(folder, message)
        (folder / file).write_bytes(kept)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    expect(folder, "model.safetensors cannot be read .* download it again")


def test_broken_index(tmp_path):
    folder = tiny.write_checkpoint(tmp_path, "A", shards=2)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text("{}")
    expect(folder, "has no weight_map")
    content["weight_map"][NORM] = "model-00001.safetensors"
    content["weight_map"]["model.transformer.wte.weight"] = "model-00002.safetensors"
    index.write_text(json.dumps(content))
    expect(folder, "does not hold")


def test_tensors_that_do_not_fit(folder):
    weights = load_file(folder / "model.safetensors")
    block = "model.transformer.blocks.1.q_proj.weight"
    for changed, message in (
        ({block: None}, f"lacks {re.escape(block)}"),
        ({block: torch.zeros(3, 16)}, r"q_proj.weight in .* has shape \(3, 16\); .*\(16, 16\)"),
        ({"model.extra.weight": torch.zeros(1)}, "holds model.extra.weight, which this model does"),
        ({"model.transformer.ln_f.bias": torch.zeros(1)}, "holds model.transformer.ln_f.bias"),
    ):
        spoilt = {n: w for n, w in (weights | changed).items() if w is not None}
        save_file(spoilt, folder / "model.safetensors")
        expect(folder, message)


def test_other_models(folder):
    config = json.loads((folder / "config.json").read_text())
    for changed, message in (
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        (
            {"architectures": ["MMadaModelLM"]},
            "tokenizer is missing|magvit|configuration asks for",
        ),
        ({"codebook_size": 64}, "64 image codes, its image tokenizer 12"),
        ({"text_vocab_size": 90}, "do not fit an embedding"),
        ({"block_type": "sequential"}, "block_type='sequential'"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changed))
        expect(folder, message)
    del config["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    expect(folder, "config.json lacks rope_theta")


@pytest.mark.parametrize(
    "wrong", [{"device": "gpu"}, {"device": "cuda:77"}, {"device": 2.5}, {"dtype": "bf16"}]
)
def test_devices_and_dtypes_that_cannot_be_used(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name} is "):
        load_checkpoint("demo", **wrong)


@pytest.mark.parametrize("dtype", [torch.int16, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_dtypes_that_nothing_is_computed_in(dtype):
    with pytest.raises(InputError, match=f"dtype is {dtype}; expected None, torch.float32"):
        load_checkpoint("demo", dtype=dtype)

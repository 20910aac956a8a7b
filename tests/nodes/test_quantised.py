"""Files that our converter wrote, in layers that ComfyUI streams."""

import sys
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core import (
    CheckpointError,
    SamplerSettings,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.load import check_formats, multiply_as_int8, open_checkpoint
from mmada_parallel.mmp_core.model.formats import FORMATS
from mmada_parallel.mmp_core.model.quantised import WeightOnlyLinear, quantise
from mmada_parallel.tests.nodes.hosted import prepare

CLOSE = {"fp32": 1e-5, "bf16": 2**-7}
"""Tolerance relative to the largest value: attention and matmul kernels may differ."""


@pytest.fixture(scope="module")
def packed(model_folder):
    """``packed("fp8")``: the name of such a file in the model folder."""
    made = []

    def pack(kind):
        name = f"untrained-{kind}.safetensors"
        if name not in made:
            made.append(name)
            convert(model_folder / "untrained", model_folder / name, quantize=kind)
        return name

    yield pack
    for name in made:
        (model_folder / name).unlink()


@pytest.fixture(params=["fp8", "int8", "nvfp4"])
def kind(request):
    return request.param


def quantised_layers(loaded):
    modules = loaded.model.transformer.modules()
    return [layer for layer in modules if isinstance(layer, WeightOnlyLinear)]


def test_comfyui_holds_the_blocks_in_one_byte_per_weight(host, packed, kind):
    loaded = host.load(packed(kind), "bf16", "auto")
    layers = quantised_layers(loaded)
    assert len(layers) == 2 * 7
    assert {layer.weight.dtype.itemsize for layer in layers} == {1}
    assert all(hasattr(layer, "comfy_cast_weights") for layer in layers)
    ours = {id(layer.weight) for layer in layers}
    others = [p for p in loaded.model.transformer.parameters() if id(p) not in ours]
    assert {p.dtype for p in others} == {torch.bfloat16}
    assert loaded.patcher.model_size() < 1.1 * sum(
        p.nbytes for p in [*others, *(layer.weight for layer in layers)]
    )
    assert {p.dtype for p in loaded.model.image_tokenizer.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_hidden_states_are_those_of_the_plain_core(host, model_folder, packed, kind, dtype):
    loaded = host.load(packed(kind), dtype, "auto").model
    plain = load_checkpoint(model_folder / packed(kind), dtype=host.DTYPES[dtype])
    ids = torch.arange(60)[None]
    theirs, ours = loaded.transformer(ids).float(), plain.transformer(ids).float()
    assert (theirs - ours).abs().max() <= CLOSE[dtype] * ours.abs().max()
    original = load_checkpoint(model_folder / "untrained", dtype=host.DTYPES[dtype])
    assert (original.transformer(ids).float() - ours).abs().max() > 10 * CLOSE["fp32"]


@torch.inference_mode()  # as ComfyUI runs nodes
def test_tokens_are_those_of_the_plain_core(host, model_folder, packed, kind):
    loaded = host.load(packed(kind), "fp32", "auto")
    plain = load_checkpoint(model_folder / packed(kind), dtype=torch.float32)
    found = []
    for model in (loaded.model, plain):
        prompt = encode_instruction(model, "add a red star")
        prepare(loaded, prompt)
        found.append(denoise(model, prompt, SamplerSettings(seed=3, image_steps=4)).final)
    assert torch.equal(found[0].text, found[1].text)
    assert torch.equal(found[0].image, found[1].image)


def test_inputs_are_never_quantised(host, packed, kind):
    """Kernels for int8 round what goes in, too, to 127 steps of its largest value."""
    layer = quantised_layers(host.load(packed(kind), "fp32", "auto"))[0]
    x = torch.zeros(1, 2, layer.in_features)
    x[..., 0], x[..., 1] = 1.0, 1e-4
    weight = layer.dequantised(torch.float32)
    expected = weight[:, 0] + 1e-4 * weight[:, 1]
    assert torch.allclose(layer(x)[0, 0], expected, rtol=0, atol=1e-7)


def test_an_unquantised_file_gives_the_tokens_of_its_folder(host, packed, model):
    found = []
    for loaded in (model, host.load(packed("none"), "auto", "auto")):
        assert not quantised_layers(loaded)
        prompt = encode_instruction(loaded.model, "add a red star")
        found.append(denoise(loaded.model, prompt, SamplerSettings(seed=3, image_steps=4)).final)
    assert torch.equal(found[0].image, found[1].image)


def test_files_are_offered_beside_folders(folders, packed):
    assert packed("none") in folders.checkpoints()


def test_float8_is_refused_on_apples_gpus_and_int8_is_not(model_folder, packed):
    mps = torch.device("mps")
    with pytest.raises(CheckpointError, match="hold: convert .* to int8 .Convert Checkpoint"):
        check_formats(open_checkpoint(model_folder / packed("fp8")), mps)
    check_formats(open_checkpoint(model_folder / packed("int8")), mps)


def test_a_file_of_another_kind_is_refused_in_one_sentence(host, model_folder):
    from safetensors.torch import save_file

    file = model_folder / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="other.safetensors was not written by") as caught:
        host.load("other.safetensors", "auto", "auto")
    file.unlink()
    assert "\n" not in str(caught.value)


def test_int8_multiplies_as_the_plain_core_does(host, model_folder, packed):
    loaded = host.load(packed("int8"), "int8", "auto")
    assert all(layer.as_int8 for layer in quantised_layers(loaded))
    assert loaded.command["dtype"] == "int8"
    dtype = loaded.model.transformer.dtype
    plain = load_checkpoint(model_folder / packed("int8"), dtype=dtype)
    ids = torch.arange(60)[None]
    others = plain.transformer(ids).float()
    multiply_as_int8(plain.transformer, "the model")
    ours, theirs = plain.transformer(ids).float(), loaded.model.transformer(ids).float()
    assert (theirs - ours).abs().max() <= CLOSE["bf16"] * ours.abs().max()
    assert (others - ours).abs().max() > 10 * CLOSE["fp32"]


def test_kernels_of_comfyui_multiply_int8_on_a_card(host, monkeypatch):
    made = host.layers.StreamedQuantisedLinear(64, 96, FORMATS["int8"], device="cpu")
    weight, scale = quantise(torch.randn(96, 64), FORMATS["int8"])
    made.load_state_dict({"weight": weight, "weight_scale": scale})
    x = torch.randn(40, 64)
    dequantised, made.as_int8 = made(x), True
    ours = made(x)
    monkeypatch.setattr(host.layers.comfy.model_management, "is_device_cpu", lambda device: False)
    theirs = made(x)
    assert theirs.dtype == x.dtype and not torch.equal(theirs, dequantised)
    assert (theirs - ours).abs().max() <= 1e-5 * ours.abs().max()
    monkeypatch.setattr(host.layers.core, "int8_product", lambda *_: None)  # an older ComfyUI
    assert torch.equal(made(x), ours)


@pytest.mark.parametrize(
    "name, ours",
    [("int8_linear", "int8_product"), ("dequantize_per_tensor_fp8", "dequantised_fp8")],
)
def test_a_kernel_that_fails_is_said_once(host, monkeypatch, caplog, name, ours):
    def failing(*_, **__):
        raise RuntimeError("no such card")

    monkeypatch.setitem(sys.modules, "comfy_kitchen", SimpleNamespace(**{name: failing}))
    monkeypatch.setattr(host.layers.core, "_FAILED", set())
    x = torch.ones(2, 2)
    assert [getattr(host.layers.core, ours)(x, x, x) for _ in range(3)] == [None] * 3
    (line,) = (record.message for record in caplog.records)
    assert name in line and "no such card" in line


def test_int8_of_other_weights_is_refused(host):
    with pytest.raises(CheckpointError, match="holds no int8 weights.*Convert Checkpoint"):
        host.load("untrained", "int8", "auto")

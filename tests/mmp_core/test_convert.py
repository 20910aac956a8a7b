import json
import shutil
from collections import namedtuple

import pytest
import torch
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.evaluate import judge
from mmada_parallel.demo.world import task
from mmada_parallel.mmp_core import (
    CheckpointError,
    InputError,
    SamplerSettings,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint import convert as module
from mmada_parallel.mmp_core.checkpoint import tensors as tensor_files
from mmada_parallel.mmp_core.checkpoint.adapters import build_adapter
from mmada_parallel.mmp_core.checkpoint.convert import KINDS, convert
from mmada_parallel.mmp_core.checkpoint.load import open_checkpoint
from mmada_parallel.mmp_core.checkpoint.merge import Merged
from mmada_parallel.mmp_core.checkpoint.partial import partial
from mmada_parallel.mmp_core.checkpoint.tokens import token_identity
from mmada_parallel.mmp_core.model.formats import FORMATS, Format
from mmada_parallel.mmp_core.model.quantised import (
    WeightOnlyLinear,
    formats_of,
    marker,
    parts_of,
    quantise,
)
from mmada_parallel.tests.mmp_core import tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

HEAD = "model.transformer.ff_out.weight"
QUERY = "model.transformer.blocks.1.q_proj"
GB = namedtuple("usage", "total used free")


@pytest.fixture(params="AM", scope="module")
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def folder(variant, tmp_path_factory):
    """Three shards; unchanged by the tests."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("folder") / "Tiny", variant, shards=3)


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def packed(folder, kind, tmp_path_factory):
    """``folder`` in one file, by ``kind``."""
    file = tmp_path_factory.mktemp("packed") / "tiny.safetensors"
    convert(folder, file, quantize=kind)
    return file


@pytest.fixture
def spoilt(tmp_path):
    """A folder of variant A to spoil."""
    return tiny.write_checkpoint(tmp_path / "checkpoint", "A")


def dequantised(packed):
    """The transformer's tensors of ``packed``, computed apart from the code under test; those of 4
    bits by comfy_kitchen, in float32."""
    stored = load_file(packed)
    found = {}
    for name, tensor in stored.items():
        if name.startswith("image_tokenizer.") or "_scale" in name or "comfy_quant" in name:
            continue
        if whole := stored.get(f"{name}_scale_2") if f"{name}_scale_2" in stored else None:
            kitchen = pytest.importorskip("comfy_kitchen")
            found[name] = kitchen.dequantize_nvfp4(
                tensor, whole, stored[f"{name}_scale"], torch.float32
            )
            continue
        scale = stored.get(f"{name}_scale")
        found[name] = tensor if scale is None else tensor.double().mul(scale.double()).float()
    return found


def test_the_file_is_the_whole_checkpoint(folder, packed, variant):
    whole, one = load_checkpoint(folder), load_checkpoint(packed)
    assert (one.variant.id, one.config) == (variant, whole.config)
    assert one.tokenizer("make it red .") == whole.tokenizer("make it red .")
    assert token_identity(one) == token_identity(whole)
    image = whole.image_tokenizer.state_dict()
    assert all(torch.equal(t, image[n]) for n, t in one.image_tokenizer.state_dict().items())


def test_it_computes_what_its_dequantised_weights_do(folder, packed):
    plain = load_checkpoint(folder)
    plain.transformer.load_state_dict(dequantised(packed))
    one = load_checkpoint(packed)
    assert type(one.transformer.layers["ff_out"]) is nn.Linear
    found = []
    for model in (one, plain):
        prompt = encode_instruction(model, "make it red .", size=(4 * model.downsample,) * 2)
        final = denoise(model, prompt, SamplerSettings(seed=1, text_steps=2, image_steps=3)).final
        hidden = model.transformer(torch.arange(20)[None])
        found.append((final.text, final.image, hidden))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_only_the_linears_of_blocks_change(folder, packed, kind):
    stored, given = load_file(packed), open_checkpoint(folder).weights
    layers = {n.removesuffix(".comfy_quant") for n in stored if n.endswith(".comfy_quant")}
    fitting = 4 if kind == "nvfp4" else 7  # these layers' sizes are multiples of 16
    assert len(layers) == (0 if kind == "none" else 2 * fitting)
    for name in given:
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(stored[name], given[name]), name
            continue
        for part, (dtype, shape) in FORMATS[kind].parts(*reversed(given[name].shape)).items():
            tensor = stored[f"{name.removesuffix('.weight')}.{part}"]
            assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)


def test_the_marker_is_the_one_that_comfyui_reads(folder, packed, kind):
    stored = load_file(packed)
    if kind == "none":
        assert f"{QUERY}.comfy_quant" not in stored
        return
    marker = json.loads(stored[f"{QUERY}.comfy_quant"].numpy().tobytes())
    names = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise", "nvfp4": "nvfp4"}
    assert marker == {"format": names[kind], "full_precision_matrix_mult": True}


def test_the_header_tells_what_it_was_made_of(folder, packed, variant, kind):
    with safe_open(packed, framework="pt") as file:
        notes = file.metadata()
    about = json.loads(notes["mmada_parallel"])
    assert (about["version"], about["variant"], about["quantization"]) == (1, variant, kind)
    assert about["provenance"]["source"] == "Tiny"
    assert about["provenance"]["sha256"].keys() == {"config.json", "model.safetensors.index.json"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert notes[f"tokenizer/{name}"] == (folder / name).read_text(encoding="utf-8")


def test_a_compute_dtype_leaves_what_is_stored(packed, kind):
    half = load_checkpoint(packed, dtype=torch.bfloat16).transformer
    hidden = half(torch.arange(20)[None])
    assert hidden.dtype == torch.bfloat16
    query = half.get_submodule(QUERY)
    if kind == "none":
        return
    assert isinstance(query, WeightOnlyLinear)
    stored, scale = query.weight.clone(), query.weight_scale.clone()
    half.float()
    assert query.weight.dtype == FORMATS[kind].storage and query.weight_scale.dtype == scale.dtype
    assert torch.equal(query.weight.view(torch.uint8), stored.view(torch.uint8))
    assert torch.equal(query.weight_scale.float(), scale.float())
    assert half(torch.arange(20)[None]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name, error", [("fp8", 2**-4), ("int8", 1 / 252)])
def test_quantising_is_as_close_as_its_bits(name, error, dtype):
    weight = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3] = 0
    weight[5] *= 1e-3
    stored, scale = quantise(weight, FORMATS[name])
    back = stored.float() * scale
    assert torch.equal(scale, scale.bfloat16().float())
    assert torch.equal(back.bfloat16(), stored.bfloat16() * scale.bfloat16())
    of = weight.float().abs() if name == "fp8" else weight.float().abs().amax(1, keepdim=True)
    least = scale * 2**-10 if name == "fp8" else torch.finfo(torch.float32).tiny
    assert ((back - weight.float()).abs() <= (error * of * 1.01).clamp_min(least)).all()


def test_fp8_uses_the_whole_range_and_never_leaves_it():
    for largest in (448.0, 448.0001, 1e-3, 7.0):
        weight = torch.tensor([[largest, -largest, 0.0]])
        stored, scale = quantise(weight, FORMATS["fp8"])
        assert stored.float().isfinite().all() and 208 <= stored.float().max() <= 448
        assert scale.log2().frac() == 0


def test_large_tensors_are_copied_in_parts(folder, packed, tmp_path, kind, monkeypatch):
    head = open_checkpoint(folder).weights[HEAD]
    monkeypatch.setattr(tensor_files, "_BLOCK_BYTES", head.nbytes // 8)
    blocks = list(open_checkpoint(folder).weights.blocks(HEAD))
    assert len(blocks) >= 8 and torch.equal(torch.cat(blocks), head)
    convert(folder, tmp_path / "again.safetensors", quantize=kind)
    assert (tmp_path / "again.safetensors").read_bytes() == packed.read_bytes()


def test_progress_ends_at_the_total(folder, tmp_path):
    told = []
    convert(folder, tmp_path / "a.safetensors", progress=lambda *now: told.append(now))
    assert told == sorted(told) and told[-1][0] == told[-1][1] == {t for _, t in told}.pop()
    assert (tmp_path / "a.safetensors").stat().st_size > told[-1][1]


def test_another_image_tokenizer_can_be_packed_or_given(tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "own", "M")
    elsewhere = tmp_path / "downloads"
    (folder / "magvitv2").rename(elsewhere)
    weights = load_file(elsewhere / "model.safetensors")
    (elsewhere / "model.safetensors").unlink()
    torch.save(weights, elsewhere / "pytorch_model.bin")
    out = tmp_path / "m.safetensors"
    convert(folder, out, image_tokenizer_path=elsewhere)
    shutil.rmtree(folder)
    name = "encoder.conv_in.bias"
    assert torch.equal(load_checkpoint(out).image_tokenizer.state_dict()[name], weights[name])
    torch.save(weights | {name: weights[name] + 1}, elsewhere / "pytorch_model.bin")
    given = load_checkpoint(out, image_tokenizer_path=elsewhere).image_tokenizer.state_dict()
    assert torch.equal(given[name], weights[name] + 1)


def refused(source, out, message, error=InputError, **options):
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        convert(source, out, **options)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.rglob("*")) == before


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(spoilt, tmp_path):
    out = tmp_path / "out.safetensors"
    convert(spoilt, tmp_path / "one.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    refused(tmp_path / "nowhere", out, "No checkpoint at", CheckpointError)
    refused(tmp_path / "one.safetensors", out, "is one file already")
    refused(spoilt, tmp_path / "out.bin", "end the name in .safetensors")
    refused(spoilt, tmp_path / "folder.safetensors", "is a folder")
    refused(spoilt, spoilt / "model.safetensors", "is read by this conversion")
    refused(spoilt, out, "quantize is 'int4'; expected fp8, int8, nvfp4, none", quantize="int4")
    weights = load_file(spoilt / "model.safetensors")
    weights[f"{QUERY}.weight"][0, 0] = torch.nan
    save_file(weights, spoilt / "model.safetensors")
    message = r"blocks.1.q_proj.weight in .* holds values that are not finite"
    refused(spoilt, out, message, CheckpointError, quantize="int8")
    del weights[f"{QUERY}.weight"]
    save_file(weights, spoilt / "model.safetensors")
    refused(spoilt, out, "lacks model.transformer.blocks.1.q_proj.weight", CheckpointError)


def test_a_full_disk_is_told_before_the_work(spoilt, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: GB(10**9, 10**9 - 5000, 5000))
    out = tmp_path / "new" / "out.safetensors"
    refused(spoilt, out, r"out.safetensors takes \d+\.\d MB, but .* has 0.0 MB free")
    assert not out.parent.exists()


def test_a_disk_that_fills_up_keeps_what_was_there(spoilt, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"the file before")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", fail)
    refused(spoilt, out, "out.safetensors cannot be written .No space left on device.")
    assert out.read_bytes() == b"the file before"


def rewrite(file, tensors=None, **notes):
    """Change what ``file`` holds; a note or tensor that is None goes."""
    with safe_open(file, framework="pt") as opened:
        notes = {**opened.metadata(), **notes}
    held = {**load_file(file), **(tensors or {})}
    save_file(
        {n: t for n, t in held.items() if t is not None},
        file,
        metadata={n: t for n, t in notes.items() if t is not None},
    )


@pytest.mark.parametrize(
    "notes, tensors, message",
    [
        ({"mmada_parallel": None}, {}, "was not written by `mmada-parallel convert`"),
        ({"mmada_parallel": "{"}, {}, "no readable mmada_parallel in its header"),
        ({"mmada_parallel": '{"version": 2}'}, {}, "has a different version from 1: update"),
        ({"config.json": "[1]"}, {}, "no readable config.json in its header"),
        ({"image_tokenizer/config.json": None}, {}, "no readable image_tokenizer/config.json"),
        ({"tokenizer/tokenizer.json": None}, {}, r"tokenizer.json is missing in .*fp8.safet"),
        ({"tokenizer/tokenizer.json": "{}"}, {}, r"tokenizer.json in .*fp8.safet.* cannot be read"),
        ({}, {f"{QUERY}.weight": None}, "q_proj.weight is missing"),
        ({}, {f"{QUERY}.weight_scale": None}, "q_proj.weight_scale is missing"),
        ({}, {f"{QUERY}.weight_scale": torch.ones(2)}, r"has shape \(2,\)"),
        (
            {},
            {f"{QUERY}.comfy_quant": torch.zeros(3, dtype=torch.uint8)},
            "unknown format; expected",
        ),
        (
            {},
            {
                f"{QUERY}s.comfy_quant": marker(FORMATS["fp8"]),
                f"{QUERY}s.weight_scale": torch.ones(()),
            },
            "q_projs.weight is missing",
        ),
        ({}, {"image_tokenizer.encoder.conv_in.bias": None}, "lacks encoder.conv_in.bias"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(spoilt, tmp_path, notes, tensors, message):
    file = tmp_path / "fp8.safetensors"
    convert(spoilt, file, quantize="fp8")
    rewrite(file, tensors, **notes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)


def test_a_file_of_an_unknown_family_is_opened_as_what_the_user_says(spoilt, tmp_path):
    file = tmp_path / "one.safetensors"
    convert(spoilt, file)
    rewrite(file, {}, mmada_parallel='{"version": 1, "variant": "Z"}')
    with pytest.raises(InputError):
        open_checkpoint(file)
    source = open_checkpoint(file, family="A")
    assert source.variant.id == "A" and source.doubt.endswith("its header says Z.")


def test_half_a_file_is_refused(spoilt, tmp_path):
    file = tmp_path / "half.safetensors"
    convert(spoilt, file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="half.safetensors cannot be read"):
        load_checkpoint(file)


@pytest.mark.parametrize("name", FORMATS)
def test_the_quantised_demo_still_edits(name, tmp_path):
    file = tmp_path / "demo.safetensors"
    convert("demo", file, quantize=name)
    assert set(formats_of(open_checkpoint(file).weights).values()) == {FORMATS[name]}
    assert file.stat().st_size < 12.1e6
    model = load_checkpoint(file, dtype=torch.float32)
    tasks = [task(HELD_OUT + i, kinds=("recolour", "add")) for i in range(6)]
    found = judge(model, tasks, settings=SamplerSettings(joint_guidance=0), batch=6)
    assert found["picture"] >= 5 / 6 and found["sentence"] >= 5 / 6


@pytest.mark.parametrize("per_row", [True, False])
def test_whole_numbers_are_rounded_with_any_scale(per_row):
    form = Format("int8_tensorwise", "int8", 127, per_row=per_row)
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    stored, scale = quantise(weight, form)
    assert (stored * scale - weight).abs().max() <= scale.max() / 2 * (1 + 1e-6)


def test_an_adapter_is_merged_into_the_weights(spoilt, tmp_path):
    model = load_checkpoint(spoilt)
    generator = torch.Generator().manual_seed(5)
    layer = model.transformer.get_submodule(QUERY)
    a = torch.randn(2, layer.in_features, generator=generator)
    b = torch.randn(layer.out_features, 2, generator=generator)
    state = {f"{QUERY}.lora_A.weight": a, f"{QUERY}.lora_B.weight": b}
    save_file(state, tmp_path / "lora.safetensors")
    narrow = {f"{QUERY}.lora_A.weight": a[:, :-1].contiguous()}
    save_file(state | narrow, tmp_path / "other.safetensors")
    convert(spoilt, tmp_path / "m.safetensors", adapters=[(tmp_path / "lora.safetensors", -0.5)])
    merged = load_checkpoint(tmp_path / "m.safetensors")
    difference = merged.transformer.get_submodule(QUERY).weight - layer.weight
    assert torch.allclose(difference, -0.5 * b @ a, atol=1e-5)
    build_adapter(model, state, {}, "lora").attach(model.transformer, -0.5)
    ids = torch.arange(20)[None]
    assert torch.allclose(merged.transformer(ids), model.transformer(ids), atol=1e-4)
    refused(
        spoilt,
        tmp_path / "o.safetensors",
        "of another model",
        adapters=[(tmp_path / "other.safetensors", 1)],
    )
    for strength in (float("nan"), float("inf"), "1"):
        adapters = [(tmp_path / "lora.safetensors", strength)]
        refused(spoilt, tmp_path / "o.safetensors", "expected a number from", adapters=adapters)


def test_another_adapter_of_the_same_name_is_told_apart(spoilt, tmp_path):
    model, folder = load_checkpoint(spoilt), tmp_path / "peft"
    layer = model.transformer.get_submodule(QUERY)
    state = {
        f"{QUERY}.lora_A.weight": torch.ones(2, layer.in_features),
        f"{QUERY}.lora_B.weight": torch.ones(layer.out_features, 2),
    }
    found = []
    folder.mkdir()
    for scale, alpha in ((1.0, 2), (2.0, 2), (2.0, 4)):
        scaled = {name: scale * tensor for name, tensor in state.items()}
        save_file(scaled, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "lora_alpha": alpha}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        found.append(Merged(model, [(folder, 1.0)]).about)
    assert len({json.dumps(about) for about in found}) == 3


def test_a_conversion_goes_on_from_the_same_sources_only(spoilt, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    source, write, written = open_checkpoint(spoilt), module._write, []

    def stopping(file, position, *rest):
        if len(written) == 9:
            raise KeyboardInterrupt
        written.append(position)
        write(file, position, *rest)

    def begin():
        written.clear()
        monkeypatch.setattr(module, "_write", stopping)
        with pytest.raises(KeyboardInterrupt):
            module.write_packed(open_checkpoint(spoilt), out, "int8", keep=True)
        written.clear()
        monkeypatch.setattr(module, "_write", lambda *args: (written.append(1), write(*args)))

    begin()
    module.write_packed(source, out, "int8")
    resumed, bytes_resumed = len(written), out.read_bytes()
    written.clear()
    convert(spoilt, out, quantize="int8")
    whole = len(written)
    assert out.read_bytes() == bytes_resumed
    assert 9 - 2 <= whole - resumed <= 9  # a layer, its scale and its marker are written again
    begin()
    weights = load_file(spoilt / "model.safetensors")
    save_file({n: t + 1 for n, t in weights.items()}, spoilt / "model.safetensors")
    convert(spoilt, out, quantize="int8")
    (norm,) = [t for n, t in load_file(out).items() if n.endswith("ln_f.weight")]
    assert torch.equal(norm, weights["model.transformer.ln_f.weight"] + 1)
    assert len(written) == whole


def test_two_conversions_to_one_file_do_not_mix(spoilt, tmp_path):
    out = tmp_path / "out.safetensors"
    with partial(out, keep=True) as unfinished:
        unfinished.begin(b"", [])
        with pytest.raises(InputError, match="is being written by another"):
            convert(spoilt, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, columns", [(16, 16), (144, 208), (256, 64)])
def test_four_bits_are_read_by_comfyui_to_the_same_bits(rows, columns, dtype):
    kitchen = pytest.importorskip("comfy_kitchen")
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)) * 0.03
    weight[3] = 0
    weight[5] *= 30
    parts = parts_of(weight, FORMATS["nvfp4"])
    whole, scale = parts["weight_scale_2"], parts["weight_scale"]
    back = WeightOnlyLinear.of(weight, FORMATS["nvfp4"]).dequantised(dtype)
    assert torch.equal(back, kitchen.dequantize_nvfp4(parts["weight"], whole, scale, dtype))
    again = kitchen.quantize_nvfp4(weight, whole, pad_16x=False)
    assert torch.equal(again[0], parts["weight"])
    assert torch.equal(again[1].view(torch.uint8), scale.view(torch.uint8))
    steps = weight.unflatten(1, (-1, 16)).abs().amax(-1, keepdim=True) / 6
    error = (back.float() - weight).unflatten(1, (-1, 16)).abs()
    assert (error <= 1.13 * steps + 1e-9).all()  # the widest gap is 2 steps, a scale 1/16 off


def test_four_bits_refuse_what_is_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        parts_of(torch.full((16, 16), torch.inf), FORMATS["nvfp4"])


def test_each_part_of_a_tensor_can_be_stopped(folder, tmp_path, monkeypatch):
    def parts(name):
        told = []
        convert(folder, tmp_path / name, progress=lambda *now: told.append(now))
        return len(told)

    whole = parts("a.safetensors")
    monkeypatch.setattr(tensor_files, "_BLOCK_BYTES", 1024)
    assert parts("b.safetensors") > whole
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()

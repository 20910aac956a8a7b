"""The smallest weights, adapters and headers for each fault that a second search found."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from mmada_parallel.mmp_core import encode_instruction, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.adapters import adapter_state, build_adapter, read_adapter
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.inspect import inspect_checkpoint
from mmada_parallel.mmp_core.checkpoint.load import open_checkpoint
from mmada_parallel.mmp_core.checkpoint.tensors import MOST_TENSORS
from mmada_parallel.mmp_core.checkpoint.text_tokenizer import tokenizer_of
from mmada_parallel.mmp_core.model.lora import CastOperations, LayerShape, LowRank
from mmada_parallel.mmp_core.model.quantised import formats_of
from mmada_parallel.training.loop.folder import RunFolder
from safetensors.torch import load_file, save_file

from .limits import judged
from .mutations import safetensors_bytes, safetensors_parts
from .readers import READERS, RED
from .test_corpus import PAIR, edit, refused


def test_a_readme_of_blank_lines_is_read_at_once(folder):
    (folder / "README.md").write_text("---" + "\n" * 65_000)
    assert judged(lambda: load_checkpoint(folder), seconds=3)[0] == "ok"
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert "mit" in inspect_checkpoint(folder).licence


@pytest.mark.parametrize("change", [
    {"x" + ".modules_to_save" * 10_000 + "z": torch.ones(2, 4)},
    {"diffusion_model.x.lora_down.weight": torch.zeros(2, 4)},
    {"x.alpha": torch.tensor(1e6), "x.lora_B.weight": torch.full((4, 2), 6e4).half()},
])  # fmt: skip
def test_adapters_of_odd_names_and_values(change):
    refused(lambda: adapter_state(PAIR | change, "it"), "it ", seconds=3)


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no float4")
@pytest.mark.parametrize("name", ["x.lora_A.weight", "x.alpha"])
def test_an_adapter_of_four_bits(name):
    shape = (2, 4) if name.endswith("weight") else (1,)
    four = torch.zeros(shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    refused(lambda: adapter_state(PAIR | {name: four}, "it"), name)


@pytest.mark.parametrize("name", ["use_rslora", "use_dora"])
@pytest.mark.parametrize("value", ["false", 1, [], {"a": 1}])
def test_switches_of_peft_that_are_none(place, tmp_path, name, value):
    shutil.copytree(place.folder / "adapter", tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", **{name: value})
    refused(lambda: read_adapter(tmp_path / "a"), "adapter_config.json", name)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "1", None, True, [1], 10**400])
def test_strengths_of_an_adapter_that_are_none(place, strength):
    adapter = build_adapter(place.model, *read_adapter(place.folder / "adapter"), "it")
    refused(lambda: adapter.attach(place.model.transformer, strength), "strength", seconds=5)


BIN = {
    "sparse": lambda tensors, key: {**tensors, key: tensors[key].to_sparse()},
    "meta": lambda tensors, key: {**tensors, key: tensors[key].to("meta")},
    "meta and unknown": lambda tensors, key: {**tensors, "x": torch.ones(1, device="meta")},
    "another float8": lambda tensors, key: {**tensors, key: tensors[key].to(torch.float8_e4m3fnuz)},
    "a number for a name": lambda tensors, key: {**tensors, 7: torch.ones(1)},
}


@pytest.mark.parametrize("change", BIN.values(), ids=BIN)
def test_pickled_weights_that_hold_no_values(place, tmp_path, change):
    shutil.copytree(place.folder / "M", tmp_path / "M")
    (file,) = (tmp_path / "M" / "magvitv2").glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    torch.save(change(tensors, max(tensors, key=lambda key: tensors[key].ndim)),
               file.with_name("pytorch_model.bin"))  # fmt: skip
    refused(lambda: load_checkpoint(tmp_path / "M"), "pytorch_model.bin holds")


@pytest.mark.parametrize("key", ["data_offsets", "d\\u0061ta_offsets"])
def test_a_header_of_too_many_tensors(place, tmp_path, key):
    entry = f'{{"dtype":"F32","shape":[0],"{key}":[0,0]}}'
    header = ",".join(f'"{number}":{entry}' for number in range(MOST_TENSORS + 1))
    header = f"{{{header}}}".encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    for read in (read_adapter, load_checkpoint):
        refused(lambda: read(file), "more than 65536 tensors")  # noqa: B023


@pytest.mark.parametrize("copy", ["A", "sharded", "packed", "M"])
def test_a_tensor_of_a_kind_that_is_unknown(place, tmp_path, copy):
    """Named by nothing, too: ComfyUI reads files whole."""
    shutil.copytree(place.folder / copy, tmp_path / "it")
    pattern = "magvitv2/*.safetensors" if copy == "M" else "*.safetensors"
    file = min((tmp_path / "it").glob(pattern))
    header, data = safetensors_parts(file.read_bytes())
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name[0] != "_")
    header["x"] = {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [end, end + 3]}
    file.write_bytes(safetensors_bytes(header, data + b"abc"))
    source = tmp_path / "it" / "a.safetensors" if copy == "packed" else tmp_path / "it"
    refused(lambda: open_checkpoint(source), "holds x as 'F6_E2M3', which is unknown")


def test_a_tokenizer_config_names_no_files(place, monkeypatch):
    """Versions of transformers before 5 read them instead of tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    seen = []
    whole = PreTrainedTokenizerFast.from_pretrained

    def spy(folder, **options):
        seen.append(json.loads(Path(folder, "tokenizer_config.json").read_text()))
        return whole(folder, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", spy)
    texts = {n: (place.folder / "A" / n).read_text() for n in ("tokenizer.json",)}
    config = {"tokenizer_file": "/etc/passwd", "vocab_file": "x", "tokenizer_object": 1,
              "model_max_length": 77}  # fmt: skip
    tokenizer_of(texts | {"tokenizer_config.json": json.dumps(config)}, "it")
    assert seen == [{"model_max_length": 77}]


def test_a_rank_far_above_the_sizes_of_its_layer():
    """Its matrices are small; the product of one with itself has 14 GB."""
    low_rank = LowRank(LayerShape(16, 16, 60_000, dora=True), CastOperations)
    for values in low_rank.parameters():
        values.data.fill_(0.01)
    layer = torch.nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        whole = (layer.weight + low_rank.lora_B.weight @ low_rank.lora_A.weight).norm(dim=1)

    def scaled():
        torch.testing.assert_close(low_rank.row_scale(layer, torch.zeros(1, 16), 1.0), 0.01 / whole)

    assert judged(scaled, seconds=3, memory=200 * 2**20)[0] == "ok"


@pytest.mark.parametrize("marker", [torch.zeros(1, dtype=torch.uint8), torch.zeros(1)])
def test_a_marker_of_a_format_that_fills_memory(marker):
    weights = {"x.comfy_quant": marker.expand(2**32)}
    refused(lambda: formats_of(weights), "x is quantised in an unknown format", seconds=2)


def test_many_layers_of_which_there_is_but_the_last(folder):
    weights = load_file(folder / "model.safetensors")
    edit(folder / "config.json", n_layers=1024)
    weights["model.transformer.blocks.1023.x"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors")
    refused(lambda: load_checkpoint(folder), "n_layers 1024, the weights", seconds=1)


def added(count, length):
    token = {"special": True, "single_word": False, "lstrip": False, "rstrip": False}
    return [
        {**token, "normalized": False, "id": i, "content": f"{i}".ljust(length, "z")}
        for i in range(count)
    ]


ADDED = {
    "long": ("tokenizer.json", lambda: {"added_tokens": added(20_000, 900)}),
    "many": ("tokenizer.json", lambda: {"added_tokens": added(70_000, 6)}),
    "special": (
        "tokenizer_config.json",
        lambda: {"additional_special_tokens": [f"<{i}>" for i in range(200_000)]},
    ),
    "decoded": (
        "tokenizer_config.json",
        lambda: {"added_tokens_decoder": dict(enumerate(added(20_000, 900)))},
    ),
    "named": ("added_tokens.json", lambda: {f"<{i}>": i for i in range(200_000)}),
    "nested": ("tokenizer.json", lambda: {"x": [[]] * 5_000_000}),
}


@pytest.mark.parametrize("file, made", ADDED.values(), ids=ADDED)
def test_a_tokenizer_that_adds_more_than_any(place, file, made):
    """The library takes minutes, or all memory and the process, before it refuses."""
    texts = {"tokenizer.json": (place.folder / "A" / "tokenizer.json").read_text(), file: "{}"}
    texts |= {file: json.dumps(json.loads(texts[file]) | made())}
    refused(lambda: tokenizer_of(texts, "it"), f"{file} in it", seconds=1, memory=2**28)


def test_an_image_tokenizer_whose_weights_are_not_numbers(folder):
    file = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["encoder.conv_in.weight"].fill_(float("nan"))
    save_file(tensors, file)
    model = load_checkpoint(folder)
    refused(lambda: encode_instruction(model, "make it red", RED), "not finite numbers")


def test_an_adapter_that_is_too_much_for_the_weights(place, folder, tmp_path):
    layer = "model.transformer.blocks.0.q_proj"
    pair = {"A": torch.full((2, 16), 3e38), "B": torch.full((16, 2), 3e38)}
    save_file(
        {f"{layer}.lora_{part}.weight": pair[part] for part in pair}, tmp_path / "a.safetensors"
    )
    adapters = [(tmp_path / "a.safetensors", 1.0)]
    refused(lambda: convert(folder, tmp_path / "out.safetensors", adapters=adapters), layer)
    assert not (tmp_path / "out.safetensors").exists()


HEADERS = {
    "sides": lambda: (
        b'"x":{"dtype":"F32","shape":[' + b"1," * 20_000_000 + b'0],"data_offsets":[0,0]}'
    ),
    "notes": lambda: (
        b'"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(3_000_000)) + b"}"
    ),
    "dots": lambda: b'"' + b"a." * 400_000 + b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}',
    "a long note": lambda: b'"__metadata__":{"a":"' + b"a" * 2**25 + b'"}',
    "a side": lambda: b'"x":{"dtype":"F32","shape":[18446744073709551615,0],"data_offsets":[0,0]}',
}


@pytest.mark.parametrize("copy, name", [
    ("A", "model.safetensors"), ("packed", "a.safetensors"), ("kohya", "a.safetensors"),
    ("tokens", "a.safetensors"), ("picks", "a.preference.safetensors"),
])  # fmt: skip
@pytest.mark.parametrize("made", HEADERS.values(), ids=HEADERS)
def test_a_header_that_takes_more_than_its_tensors(place, tmp_path, copy, name, made):
    """Each once killed or held up the process: the library itself aborts without memory."""
    shutil.copytree(place.folder / copy, tmp_path / "it")
    content = (tmp_path / "it" / name).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if b"__metadata__" in made()[:20]:
        header.pop("__metadata__", None)
    header = json.dumps(header).encode()[:-1] + b"," + made() + b"}"
    header += b" " * (-len(header) % 8)
    data = struct.pack("<Q", len(header)) + header + content[8 + length :]
    (tmp_path / "it" / name).write_bytes(data)
    reader = next(reader for reader in READERS.values() if reader.copy == copy)
    expected = ("ok", "input") if made is HEADERS["a side"] else ("input",)
    assert judged(lambda: reader.read(place, tmp_path / "it", None), seconds=5)[0] in expected


def test_an_index_of_more_tensors_than_any_checkpoint(place, tmp_path):
    shutil.copytree(place.folder / "sharded", tmp_path / "it")
    index = tmp_path / "it" / "model.safetensors.index.json"
    shard = next(iter(json.loads(index.read_text())["weight_map"].values()))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(map(str, range(500_000)), shard)}))
    refused(lambda: load_checkpoint(tmp_path / "it"), "65536 tensors", seconds=2)


def test_pickled_weights_that_hold_the_same_again_and_again(tmp_path):
    same: object = ()
    for _ in range(60):
        same = (same, same)
    for state in ({"step": same}, {"step": 1, "kind": {"a": [same]}}):
        torch.save(state, tmp_path / "run.pt")
        refused(lambda: RunFolder(tmp_path).read("cpu"), "more than 1000000 values", seconds=3)

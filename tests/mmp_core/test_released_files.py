"""Folders as people have them: each loads, or is refused in one true sentence."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmada_parallel.cli import main
from mmada_parallel.mmp_core import CheckpointError, InputError, load_checkpoint, memory
from mmada_parallel.mmp_core.checkpoint.adapters import build_adapter, read_adapter
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.inspect import inspect_checkpoint
from mmada_parallel.mmp_core.checkpoint.source import read_tokenizer
from mmada_parallel.mmp_core.variants.registry import variant_named, variant_of
from mmada_parallel.tests.mmp_core import tiny
from safetensors.torch import load_file, save_file

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4980000000\n"
BACKBONE = ["model.transformer.wte.weight"]
QUERY = "base_model.model.model.transformer.blocks.0.q_proj"


@pytest.fixture
def folder(tmp_path):
    """A folder of variant A, to spoil."""
    return plain(tmp_path / "checkpoint", "A")


def plain(folder, variant):
    """As released: without the fields that this pack's training writes."""
    tiny.write_checkpoint(folder, variant)
    edit(folder / "config.json", default_text_length=None, default_image_size=None)
    return folder


def edit(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({n: v for n, v in content.items() if v is not None}))


def expect(path, message, **options):
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path, **options)
    assert "\n" not in str(caught.value)


def test_the_cache_of_hugging_face(folder, tmp_path):
    repository = tmp_path / "models--tyfeld--MMaDA-Parallel-A"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    expect(repository, "snapshots is empty")
    shutil.copytree(folder, repository / "snapshots" / "old")
    assert load_checkpoint(repository).variant.id == "A"
    shutil.copytree(folder, repository / "snapshots" / "abc")
    (repository / "refs" / "main").write_text("abc\n")
    os.utime(repository / "snapshots" / "old", (2**32, 2**32))
    report = inspect_checkpoint(repository)
    assert report.path.endswith("abc") and report.family_known == "by its name"


def test_revisions_that_are_not_whole(folder, tmp_path):
    """main or the newest may be a download that has not ended, or no revision at all."""
    repository = tmp_path / "models--tyfeld--MMaDA-Parallel-A"
    revisions = repository / "snapshots"
    shutil.copytree(folder, revisions / "whole")
    (revisions / "begun").mkdir()
    (revisions / "begun" / "config.json").write_text("{}")
    (revisions / ".DS_Store").write_bytes(b"")
    for newest in ("begun", ".DS_Store"):
        os.utime(revisions / newest, (2**32, 2**32))
    (repository / "refs").mkdir()
    for reference in ("begun", "gone", "whole"):
        (repository / "refs" / "main").write_text(reference, encoding="utf-8-sig")
        for place in (repository, revisions):
            assert inspect_checkpoint(place).path.endswith("whole")
    weights = revisions / "whole" / "model.safetensors"
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    assert load_checkpoint(repository).variant.id == "A"
    (tmp_path / "blob").unlink()
    expect(repository, "model.safetensors is a link to a file that is not there: download it again")
    expect(tmp_path, r"is not a checkpoint itself: give one in it, as .*(checkpoint|Parallel-A)\.")


def test_the_image_tokenizer_in_the_cache(tmp_path):
    whole = plain(tmp_path / "whole", "M")
    magvit = tmp_path / "models--showlab--magvitv2"
    shutil.copytree(whole / "magvitv2", magvit / "snapshots" / "abc")
    shutil.rmtree(whole / "magvitv2")
    assert load_checkpoint(whole).variant.id == "M"  # beside it
    shutil.copytree(whole, tmp_path / "models--tyfeld--MMaDA-Parallel-M" / "snapshots" / "def")
    assert load_checkpoint(tmp_path / "models--tyfeld--MMaDA-Parallel-M").variant.id == "M"
    elsewhere = magvit.rename(tmp_path / "elsewhere")
    expect(whole, "put the files of showlab/magvitv2 into")
    assert load_checkpoint(whole, image_tokenizer_path=elsewhere).variant.id == "M"


def test_shards_without_their_index(tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "mine", "A", shards=3)
    (folder / "model.safetensors.index.json").unlink()
    expect(folder, "if model-00001.safetensors holds them, rename it")
    for shard in folder.glob("model-*.safetensors"):
        shard.rename(shard.with_name(f"{shard.stem}-of-00003.safetensors"))
    assert load_checkpoint(folder).variant.id == "A"
    (folder / "model-00002-of-00003.safetensors").unlink()
    expect(folder, "model-00002-of-00003.safetensors is missing in .*: download it there")


def test_an_index_of_an_earlier_save(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {BACKBONE[0]: "model-00001-of-00002.safetensors"}}))
    assert load_checkpoint(folder).variant.id == "A"


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "vqvae/config.json",
        "vqvae/diffusion_pytorch_model.safetensors",
    ],
)
def test_pointers_of_git_lfs(folder, name):
    (folder / name).write_text(POINTER)
    expect(folder, f"{name.rpartition('/')[2]} is a Git LFS pointer .* `git lfs pull`")


def test_other_kinds_of_files(folder, tmp_path):
    for name, content, message in (
        ("model-Q4_K_M.gguf", b"GGUF\x03\0\0\0", "is a GGUF file, which this pack cannot read"),
        ("model.safetensors", b"GGUF\x03\0\0\0", "is a GGUF file"),
        ("pytorch_model.bin", b"PK\x03\x04", "is a pickled file, which can run code"),
        ("model.safetensors", POINTER.encode(), "is a Git LFS pointer"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        expect(file, message)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    expect(folder, "No weights in .*; pytorch_model.bin is of a kind that this pack does not read")
    for name, message in (
        ("model.ckpt", "model.ckpt is of a kind that this pack does not read"),
        ("model.safetensors.part", "model.safetensors.part is a download that has not ended"),
        (".cache/huggingface/download/0123.incomplete", "give the same `hf download` again"),
    ):
        (folder / "pytorch_model.bin").unlink(missing_ok=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
        expect(folder, message)
        (folder / name).unlink()


def test_one_file_of_a_folder(folder):
    for name in ("config.json", "tokenizer.json"):
        expect(
            folder / name, f"{name} is not a .safetensors file; give .*checkpoint, the folder that"
        )
    expect(folder / "model.safetensors", "or .*checkpoint, the folder that it lies in")


def test_plain_float8_is_computed_in_bfloat16(folder, monkeypatch):
    monkeypatch.setattr(memory, "_SMALL", 1)  # a small model is computed in float32
    weights = load_file(folder / "model.safetensors")
    small = {name: weight.to(torch.float8_e4m3fn) for name, weight in weights.items()}
    save_file(small, folder / "model.safetensors")
    model = load_checkpoint(folder)
    for name, weight in model.transformer.state_dict().items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, small[name].bfloat16())
    assert any("plain float8" in sentence for sentence in inspect_checkpoint(folder).odd)


SCALES = "weight_scale scale_weight weight_scale_inv qweight input_scale g_idx SCB weight_packed"


@pytest.mark.parametrize("scale", [*SCALES.split(" "), "weight.quant_state.bitsandbytes__nf4"])
def test_other_tools_quantised_files_are_refused(folder, scale):
    layer = "model.transformer.blocks.0.q_proj"
    weights = load_file(folder / "model.safetensors")
    weights[f"{layer}.weight"] = torch.zeros(128, 1, dtype=torch.uint8)  # packed
    save_file(weights | {f"{layer}.{scale}": torch.ones(1)}, folder / "model.safetensors")
    expect(folder, f"q_proj.* is quantised in an unknown format .*{scale}.*convert")


def test_check_refuses_what_loading_would(folder):
    for name in ("model.transformer.blocks.0.q_proj.qscale", "model.transformer.ln_f.bias", "more"):
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {name: torch.ones(1)}, folder / "mine.safetensors")
        (folder / "mine.safetensors").rename(folder / "model.safetensors")
        for look in (inspect_checkpoint, load_checkpoint):
            with pytest.raises(
                CheckpointError, match=f"holds .*{name}.* which this model does not"
            ):
                look(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(folder, encoding):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vqvae/config.json"):
        file = folder / name
        file.write_text(file.read_text(encoding="utf-8"), encoding=encoding)
    assert load_checkpoint(folder).tokenizer("red")["input_ids"]
    convert(folder, folder / "packed.safetensors")
    assert load_checkpoint(folder / "packed.safetensors").variant.id == "A"


def test_rows_are_those_of_the_tensor(folder):
    rows = load_checkpoint(folder).transformer.config.embedding_size
    edit(folder / "config.json", embedding_size=rows - 4, new_vocab_size=rows - 8)
    model = load_checkpoint(folder)
    assert model.transformer.config.embedding_size == rows
    edit(folder / "config.json", vocab_size=rows + 64)
    odd = inspect_checkpoint(folder).odd
    assert f"config.json has vocab_size {rows + 64}, the embedding {rows} rows." in odd


def test_unknown_fields_of_the_image_tokenizer_are_ignored(folder, caplog):
    edit(folder / "vqvae/config.json", new_field_of_diffusers=3)
    load_checkpoint(folder)
    assert "new_field_of_diffusers is unknown here and ignored" in caplog.text


def test_architectures_are_neither_needed_nor_enough(folder):
    released = {"model_type": "llada", "embedding_size": 134_656}
    for names in (["LLaDAModelLM"], ["Wrapper"], None):
        assert variant_of({**released, "architectures": names}, BACKBONE).id == "A"
    with pytest.raises(CheckpointError, match="LLaDAModelLM.*not a checkpoint of"):
        text_alone = {"model_type": "llada", "embedding_size": 126_464}
        variant_of({**text_alone, "architectures": ["LLaDAModelLM"]}, BACKBONE)
    assert variant_of({**released, "llm_vocab_size": 126_464}, BACKBONE).id == "M"
    edit(folder / "config.json", text_vocab_size=None)  # released: 126356, past this embedding
    expect(folder, "do not fit an embedding")


class Words:
    """A tokenizer of ``size`` tokens."""

    unk_token_id = bos_token_id = eos_token_id = 0

    def __init__(self, size, known=()):
        self.size, self.known = size, known

    def __len__(self):
        return self.size

    def convert_tokens_to_ids(self, name):
        return self.size - 1 if name in self.known else None


def test_offset_where_header_tokens_are_missing():
    family, config = variant_named("M"), {"mask_token_id": 126_336, "embedding_size": 134_656}
    for tokenizer in (Words(126_349, ("<|end_header_id|>",)), Words(126_346)):
        assert family.layout(tokenizer, config).image_offset == 126_349
    for size in (126_345, 126_350):
        with pytest.raises(CheckpointError, match="MMaDA-Parallel-M has them at 126349"):
            family.layout(Words(size, ("<|end_header_id|>",)), config)


def test_a_tokenizer_that_ends_with_its_own_token_is_refused(folder):
    from tokenizers.processors import TemplateProcessing

    tokens = tiny.tokenizer("A")
    eos = tokens.eos_token
    tokens.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, tokens.eos_token_id)]
    )
    tokens.save_pretrained(folder)
    expect(folder, r"ends an instruction with '<\|endoftext\|>' instead of </user>")


@pytest.mark.parametrize(
    "name, said",
    [
        ("models--GSAI-ML--LLaDA-8B-Base/snapshots/abc", None),
        ("LLaDA-8B-Instruct", None),
        ("mine", "GSAI-ML/LLaDA-8B-Base"),
    ],
)
def test_strangers_are_refused_by_name(tmp_path, name, said):
    folder = tmp_path / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    plain(folder, "A")
    if said:
        edit(folder / "config.json", _name_or_path=said)
    expect(
        folder, "is LLaDA by .*name its folder MMaDA-Parallel-A or -M, or choose A or M as family"
    )
    assert load_checkpoint(folder, family="A").variant.id == "A"
    renamed = folder.rename(tmp_path / "MMaDA-Parallel-A")
    assert inspect_checkpoint(renamed).family_known == "by its name"


def test_what_a_checkpoint_was_trained_from_is_not_what_it_is(tmp_path):
    """A was trained from Lumina-DiMOO and M from MMaDA-8B-MixCoT, which their config.json may
    say."""
    for variant, origin in (("A", "Alpha-VLLM/Lumina-DiMOO"), ("M", "/mnt/MMaDA-8B-MixCoT")):
        for name in (f"MMaDA-Parallel-{variant}", "mine"):
            files = {"A": "A", "M": "8B"}[variant]  # whose tokenizer knows the ids of both
            folder = plain(tmp_path / variant / name, files)
            edit(folder / "config.json", _name_or_path=origin, mmada_parallel_family=None)
            report = inspect_checkpoint(folder)
            doubts = [odd for odd in report.odd if "may be what it was trained from" in odd]
            assert len(doubts) == (name == "mine")
            assert report.family_id == (variant if not doubts else {"A": "D", "M": "8B"}[variant])
    assert (
        "if it is MMaDA-Parallel-A, choose it as family"
        in inspect_checkpoint(tmp_path / "A" / "mine").odd[0]
    )
    (tmp_path / "A" / "mine" / "README.md").write_text("---\nlicense: mit\n---\n# MMaDA-Parallel\n")
    report = inspect_checkpoint(tmp_path / "A" / "mine")
    assert (report.family_id, report.family_known, report.odd) == ("A", "by its name", [])


def test_a_name_of_another_family_than_the_files(tmp_path):
    folder = plain(tmp_path / "MMaDA-Parallel-A", "M")
    assert "its files are those of MMaDA-Parallel-M" in inspect_checkpoint(folder).odd[0]
    for name in ("Lumina-DiMOO", "models--Alpha-VLLM--Lumina-DiMOO"):
        folder = folder.rename(tmp_path / name)
        report = inspect_checkpoint(folder)
        assert report.family_id == "M"
        assert "its files are those of MMaDA-Parallel-M" in report.odd[0]
    other = plain(tmp_path / "MMaDA-8B-Base", "A")
    assert "its files are those of MMaDA-Parallel-A" in inspect_checkpoint(other).odd[0]


def test_the_loader_logs_what_it_assumes(folder, caplog):
    caplog.set_level(logging.INFO)
    load_checkpoint(folder)
    assert "family assumed: A (MMaDA-Parallel-A)" in caplog.text and "as family" in caplog.text
    caplog.clear()
    load_checkpoint(folder, family="A")
    assert "assumed" not in caplog.text and "chosen by you" in caplog.text


@pytest.fixture
def adapter(tmp_path):
    """A folder as PEFT writes it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "lora_alpha": 2, "init_lora_weights": True}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    write_adapter(folder)
    return folder


def write_adapter(folder, **more):
    pair = {
        f"{QUERY}.lora_A.weight": torch.ones(2, 16),
        f"{QUERY}.lora_B.weight": torch.ones(16, 2),
    }
    save_file(pair | more, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "loftq", "corda"])
def test_adapters_that_change_the_base_are_refused(adapter, start):
    for harmless in (True, False, "gaussian", "eva", "orthogonal"):
        edit(adapter / "adapter_config.json", init_lora_weights=harmless)
        assert len(read_adapter(adapter)[0]) == 2
    edit(adapter / "adapter_config.json", init_lora_weights=start)
    with pytest.raises(InputError, match=f"started by {start}, which changes the weights of the"):
        read_adapter(adapter)


def test_a_renamed_adapter_with_its_settings_beside(adapter):
    plain_pair = read_adapter(adapter)[0][
        f"{QUERY.removeprefix('base_model.model.')}.lora_B.weight"
    ]
    file = (adapter / "adapter_model.safetensors").rename(adapter / "mine.safetensors")
    edit(adapter / "adapter_config.json", lora_alpha=4)
    pair = read_adapter(file)[0]
    assert torch.equal(next(m for n, m in pair.items() if "lora_B" in n), 2 * plain_pair)
    edit(adapter / "adapter_config.json", init_lora_weights="pissa")
    with pytest.raises(InputError, match="started by pissa"):
        read_adapter(file)
    shutil.copy(file, adapter / "another.safetensors")  # whose settings these are, nothing says
    assert read_adapter(file)


@pytest.mark.parametrize(
    "settings", [{"layer_replication": [[0, 2]]}, {"alora_invocation_tokens": [1]}]
)
def test_adapters_that_are_more_than_their_matrices_are_refused(adapter, settings):
    edit(adapter / "adapter_config.json", **settings)
    with pytest.raises(InputError, match="of a kind that this pack does not read"):
        read_adapter(adapter)


def test_adapters_of_the_output_layer_are_refused(adapter, folder):
    head = QUERY.replace("blocks.0.q_proj", "ff_out")
    low = {f"{head}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    write_adapter(adapter, **low)
    state, metadata = read_adapter(adapter)
    with pytest.raises(
        InputError, match="adapts model.transformer.ff_out, the embedding or output"
    ):
        build_adapter(load_checkpoint(folder), state, metadata, "mine")
    norm = head.replace("ff_out", "ln_f")
    for name in (
        f"{head}.weight",
        f"{head}.modules_to_save.weight",
        f"{norm}.modules_to_save.bias",
    ):
        write_adapter(adapter, **{name: torch.ones(3, 16)})
        with pytest.raises(InputError, match="weights of its own for .*(ff_out|ln_f), which"):
            read_adapter(adapter)


def run(capsys, *arguments):
    capsys.readouterr()
    code = main(["check", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.parametrize("variant", "AM")
def test_check(tmp_path, variant, capsys):
    folder = plain(tmp_path / "mine", variant)
    code, out, err = run(capsys, folder)
    assert (code, err) == (0, "")
    name = f"MMaDA-Parallel-{variant}"
    assert out.startswith(f"family assumed: {variant} ({name})\n")
    assert "as family" in out  # each has a twin
    code, out, err = run(capsys, folder, "--json", "--family", variant)
    report = json.loads(out)
    tokens = tiny.tokenizer(variant)
    rows = len(tokens) + tiny.CODES[variant]
    assert (code, report["family"], report["family_known"]) == (0, name, "chosen by you")
    assert (report["dtype"], report["rows"], report["odd"]) == ("float32", rows, [])
    assert (report["image_offset"], report["image_codes"]) == (len(tokens), tiny.CODES[variant])
    assert report["special_ids"]["mask_id"] == tokens.convert_tokens_to_ids("<|mdm_mask|>")
    last = {"A": "</user>", "M": "<|endoftext|>"}[variant]
    assert report["template_tail"][-1] == f"{last} ({tokens.convert_tokens_to_ids(last)})"
    packed = tmp_path / "packed.safetensors"
    convert(folder, packed, quantize="int8")
    report = json.loads(run(capsys, packed, "--json")[1])
    assert (report["family_known"], report["quantized"]) == (
        "stated in the file",
        ["int8_tensorwise"],
    )


def test_check_refuses_bad_input_in_one_line(tmp_path, folder, capsys):
    weights = load_file(folder / "model.safetensors")
    for arguments, left_out, message in (
        ([tmp_path / "no"], None, "No checkpoint at"),
        ([folder, "--family", "B"], None, "'B' is not a checkpoint family"),
        ([folder], "ln_f.weight", "lacks model.transformer.ln_f.weight"),
        ([folder], "wte.weight", "has no tensor model.transformer.wte.weight"),
        ([folder], "blocks.1.q_proj.weight", "lacks model.transformer.blocks.1.q_proj.weight"),
    ):
        kept = {n: w for n, w in weights.items() if n != f"model.transformer.{left_out}"}
        save_file(kept, folder / "model.safetensors")
        code, out, err = run(capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_a_large_vocabulary_is_read_without_the_config_beside_it(folder, monkeypatch):
    """transformers 4.57.2 fails on more than 100,000 words where a config.json lies beside them."""
    from transformers import PreTrainedTokenizerFast

    file, seen = folder / "tokenizer.json", []
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    words.update({f"word{i}": i for i in range(len(words), 126_349)})
    file.write_text(json.dumps(content))
    read = PreTrainedTokenizerFast.from_pretrained

    def recorded(place, **options):
        seen.extend(path.name for path in Path(place).iterdir())
        return read(place, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", recorded)
    tokens = read_tokenizer(folder)
    assert len(tokens) == 126_349 and tokens("word126348")["input_ids"] == [126_348]
    assert "tokenizer.json" in seen and "config.json" not in seen

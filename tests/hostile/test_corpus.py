"""The smallest file, value or name for each fault that was found: refused in one sentence."""

import json
import os
import random
import shutil

import pytest
import torch
from mmada_parallel.cli.run_file import read_run_file
from mmada_parallel.mmp_core import encode_instruction, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.adapters import adapter_state, read_adapter
from mmada_parallel.mmp_core.checkpoint.text_tokenizer import check_tokenizer, is_quick
from mmada_parallel.mmp_core.checkpoint.tokens import FORMAT, load_tokens, token_identity
from mmada_parallel.mmp_core.editing import pattern_selected, words_selected
from mmada_parallel.mmp_core.errors import CheckpointError, InputError
from mmada_parallel.mmp_core.files import is_plain_name, leads_out
from mmada_parallel.mmp_core.image.files import load_image
from mmada_parallel.mmp_core.outside import LONGEST_TEXT
from mmada_parallel.mmp_core.variants.strangers import NOTE
from mmada_parallel.tests.mmp_core import tiny
from mmada_parallel.training.data.dataset import open_dataset
from mmada_parallel.training.pararl.votes import VotingRound
from safetensors.torch import load_file, save_file

from .limits import MESSAGE, judged
from .mutations import safetensors_bytes, safetensors_parts
from .readers import READERS, RED

A_SECOND_AND_200_MB = {"seconds": 1, "memory": 200 * 2**20}


def refused(case, *said, **limits):
    """Under ``limits`` in a process of its own."""
    if limits:
        verdict, message = judged(case, **limits)
        assert verdict == "input", message
    else:
        with pytest.raises(InputError) as error:
            case()
        message = str(error.value)
        assert "\n" not in message and len(message) <= MESSAGE
    for part in said:
        assert part in message


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


VALUES = [-1, 0, 1.5, "12", float("nan"), float("inf"), [], {}, True, 1e20, 2**62, 10**20, 10**6]
SIZES = ["d_model", "n_layers", "n_heads", "mlp_hidden_size", "n_kv_heads"]


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_is_none_or_that_the_weights_contradict(folder, name):
    for value in VALUES:
        edit(folder / "config.json", **{name: value})
        limits = A_SECOND_AND_200_MB if value in (10**6, 2**62) else {}
        refused(lambda: load_checkpoint(folder), "config.json", name, **limits)


@pytest.mark.parametrize("value", [-1, 1.5, "12", float("nan"), [], {}, True, 1e20, 10**20])
def test_ids_and_constants_of_the_config(folder, value):
    for name in (
        "mask_token_id", "eos_token_id", "codebook_size", "text_vocab_size", "default_image_size",
        "default_text_length", "rms_norm_eps", "embedding_size", "vocab_size", "weight_tying",
    ):  # fmt: skip
        if (name == "weight_tying" and value is True) or (name == "rms_norm_eps" and value == 1.5):
            continue
        config = json.loads((folder / "config.json").read_text())
        edit(folder / "config.json", **{name: value})
        refused(lambda: load_checkpoint(folder), "config.json", name)
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("value", [-1, 0, 1.5, "1", 10**6, 10**20, None, [], float("nan")])
def test_sizes_of_the_image_tokenizer(folder, value):
    names = ["layers_per_block", "latent_channels", "norm_num_groups", "num_vq_embeddings"]
    for name in names:
        config = (folder / "vqvae/config.json").read_text()
        edit(folder / "vqvae/config.json", **{name: value})
        refused(lambda: load_checkpoint(folder), "vqvae")
        (folder / "vqvae/config.json").write_text(config)
    for widths in ([value], [8] * 9, [2**40], "8"):
        edit(folder / "vqvae/config.json", block_out_channels=widths)
        refused(lambda: load_checkpoint(folder), "block_out_channels")


@pytest.mark.parametrize(
    "name", ["config.json", "vqvae/config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_json_that_never_ends(folder, name):
    file = folder / name
    for content in (
        "[" * 10_000,
        '{"a":' * 100_000,
        "[" * 10_000 + "]" * 10_000,
        "9" * 10_000,
        "[]",
    ):
        file.write_text(content)
        refused(lambda: load_checkpoint(folder), file.name)
    with file.open("w") as stream:
        stream.truncate(2**27)
    refused(lambda: load_checkpoint(folder), "bytes; expected at most")
    file.unlink()
    os.mkfifo(file)
    assert judged(lambda: load_checkpoint(folder))[0] in (
        "ok",
        "input",
    )  # ok: as if it were missing
    file.unlink()
    file.symlink_to("/dev/zero")
    assert judged(lambda: load_checkpoint(folder))[0] in ("ok", "input")


@pytest.mark.parametrize(
    "weights", [None, [], {}, {"a": 1}, {"a": None}, {"a": "../x.safetensors"}, {"a": "/etc/x"},
                {"a": "C:\\x.safetensors"}, {"a": "x" * 300}, {"a": "\0"}, {"a": "x.bin"}]
)  # fmt: skip
def test_an_index_that_leads_elsewhere(tmp_path, place, weights):
    folder = tiny.write_checkpoint(tmp_path / "A", "A", shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    refused(lambda: load_checkpoint(folder), "index.json")


TOKENIZERS = {
    "a catastrophic pattern": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}},
    "one without nesting": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}}},
    "an expanding normaliser": {
        "normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "aa" * 99}
    },
    "a hundred steps": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}},
    "another model": {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}},
    "an id beyond reason": {"added_tokens": [{"id": 2**40, "content": "a"}]},
    "no vocabulary": {"model": {"type": "BPE", "vocab": [], "merges": []}},
    "a token of a megabyte": {"model": {"type": "WordLevel", "vocab": {"a" * 2**20: 1}}},
    "an endless template": {
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}] * 99}
    },
    "a token of a million ids": {
        "post_processor": {"type": "TemplateProcessing", "special_tokens": {"x": [0] * 10**6}}
    },
    "a script": {"pre_tokenizer": {"type": "Lua"}},
    "a list for a step": {"decoder": []},
}


@pytest.mark.parametrize("changes", TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers_that_would_not_end(changes):
    good = {"model": {"type": "WordLevel", "vocab": {"a": 0}}, "added_tokens": []}
    assert check_tokenizer(json.dumps(good), "it") == 0
    with pytest.raises(CheckpointError):
        check_tokenizer(json.dumps(good | changes), "it")


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
)
def test_the_patterns_of_released_tokenizers_are_quick(pattern):
    assert is_quick(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "([^.]*|b)" * 8 + r"(?!.|\n|\z)",
        r"[^.]*[^.]*[^.]*(?!.|\n|\z)",
        r"[^.]*[^.]*(?!.|\n|\z)",
        r"\s*\s*x",
        r"\s*(?:\s*x)",
        r"\s*(\s*|y)z",
        r"a*a*(?!)",
        r"(?~b)(?~b)x",
        r"(a|b",
        r"(?<n>a)+",
    ],
)
def test_patterns_that_divide_repetitions_anew_are_not(pattern):
    assert not is_quick(pattern)


def test_a_panic_of_the_library_is_a_sentence(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    broken = {
        "type": "Split",
        "pattern": {"Regex": "a(?<"},
        "behavior": "Isolated",
        "invert": False,
    }
    for step in (broken, {"type": "Split", "pattern": 7}, {"type": "ByteLevel", "use_regex": 7}):
        file.write_text(json.dumps(content | {"pre_tokenizer": step}))
        refused(lambda: load_checkpoint(folder), "okenizer")


SHAPES = [(1, 1025, 1025), (300, 200, 200), (1, 1, 10**6), (2000, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_tokens_beyond_reason(place, tmp_path, shape):
    file, about = tmp_path / "a.safetensors", {"format": FORMAT, **token_identity(place.model)}
    tokens = {"text": torch.zeros(shape[0], 4).long(), "image": torch.zeros(shape).long()}
    save_file(tokens, file, metadata=about)
    refused(lambda: load_tokens(file, place.model), "expected at most")


def test_a_batch_of_none(place, tmp_path):
    file, about = tmp_path / "a.safetensors", {"format": FORMAT, **token_identity(place.model)}
    tokens = {"text": torch.zeros(0, 4).long(), "image": torch.zeros(0, 2, 2).long()}
    save_file(tokens, file, metadata=about)
    refused(lambda: load_tokens(file, place.model), "not a batch of tokens")


@pytest.mark.parametrize(
    "placement",
    ["[", "[" * 50_000, "7", "{}", '[{"size": [0, 0]}]', '[{"a": [1]}]', '["x"]', "[[]]", "[1e999]",
     '[{"original": [1e999, 1], "box": [0, 0, 1, 1], "size": [1, 1]}]',
     '[{"original": ["4", 4], "box": [0, 0, 4, 4], "size": [4, 4]}]',
     '[{"original": [64, 48], "box": [0, 0, 64, 48], "size": [64, 48]}]',
     '[{"original": [64, 48], "box": [64, 0, 80, 16], "size": [SIDES]}]'],
)  # fmt: skip
def test_placements_that_are_none(place, tmp_path, placement):
    file = tmp_path / "a.safetensors"
    tokens = load_file(place.folder / "tokens" / "a.safetensors")
    sides = [side * place.model.downsample for side in tokens["image"].shape[:0:-1]]
    placement = placement.replace("SIDES", json.dumps(sides)[1:-1])
    about = {"format": FORMAT, "placement": placement, **token_identity(place.model)}
    save_file(tokens, file, metadata=about)
    refused(lambda: load_tokens(file, place.model), "a.safetensors")


PAIR = {"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(4, 2)}


@pytest.mark.parametrize(
    "changes",
    [
        {"x.alpha": torch.tensor(float("inf"))},
        {"x.alpha": torch.tensor(float("nan"))},
        {"x.alpha": torch.tensor(1 + 1j)},
        {"x.lora_A.weight": torch.ones(0, 4), "x.lora_B.weight": torch.ones(4, 0)},
        {"x.lora_A.weight": torch.ones(2, 4).long()},
        {"x.lora_A.weight": torch.full((2, 4), float("nan"))},
        {"x.alpha": 0.5},
        {5: torch.ones(2, 4)},
        {"x.lora_A.weight": [[1.0] * 4] * 2},
        {"x.lora_A.weight": None},
        {"x.lora_A.weight": torch.ones(2, 4, device="meta")},
        {"x.lora_A.weight": torch.ones(2, 4).to_sparse()},
        {"x.alpha": torch.tensor(1.0), "diffusion_model.x.alpha": torch.tensor(2.0)},
        {f"x.lora_magnitude_vector{end}": torch.ones(4) for end in ("", ".default")},
        {
            "x.lora_A.weight": torch.ones(1).expand(2**34, 4),
            "x.lora_B.weight": torch.ones(1).expand(4, 2**34),
        },
    ],
)
def test_adapters_that_are_none(changes):
    with pytest.raises(InputError):
        adapter_state(PAIR | changes, "it")


def test_an_adapter_of_float8_with_a_scale_is_read():
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in PAIR.items()}
    state = adapter_state(small | {"x.alpha": torch.tensor(1.0)}, "it")
    assert torch.equal(state["x.lora_B.weight"].float(), torch.full((4, 2), 0.5))


@pytest.mark.parametrize(
    "pattern",
    ["(?x)(?:(?:a{1 0 0 0}){1 0 0 0}){1 0 0 0}", "(a{0001000}){0001000}", "((a{99}){99}){99}",
     "(?ix:a{9 9 9})", "a{9999999999}", "(", "a" * 501, "\ud800", "(?R)*(?1)", "[[:foo:]]{,99999}"],
)  # fmt: skip
def test_patterns_that_take_for_ever(pattern):
    refused(lambda: pattern_selected(["a"] * 100, pattern), "pattern", seconds=3)


def test_a_match_at_every_place_of_a_long_text_is_quick():
    pieces = ["a ", "b"] * 40_000

    def case():
        for pattern in (".", "a", r"\w", ""):
            assert sum(pattern_selected(pieces, pattern)) <= len(pieces)

    assert judged(case, seconds=5)[0] == "ok"
    assert pattern_selected(["ab", "cd", " e"], "bc| ") == [True, True, False]
    assert words_selected(["ab", " cd", " e"], "2-") == [False, True, True]


@pytest.mark.parametrize("text", ["\ud800", "a" * (LONGEST_TEXT + 1), b"a", 7, None])
def test_texts_that_are_none(place, text):
    refused(lambda: encode_instruction(place.model, text, RED), "The instruction")


def test_a_text_of_100_megabytes_is_refused_before_it_is_read(place, tmp_path):
    RED.save(tmp_path / "a.png")
    with (tmp_path / "a.txt").open("w") as stream:
        stream.truncate(10**8)
    refused(lambda: open_dataset(tmp_path), "bytes; expected at most", **A_SECOND_AND_200_MB)
    (tmp_path / "a.txt").unlink()
    for line in (
        "[" * 10_000,
        '{"instruction": "\\ud800"}',
        '{"instruction": 7}',
        '{"image": "\\u0000"}',
    ):
        (tmp_path / "a.jsonl").write_text(line)
        refused(lambda: open_dataset(tmp_path / "a.jsonl"))


NAMES = ["../a.png", "/etc/passwd", "..\\a.png", "C:\\a.png", "C:a.png", "\\\\host\\share\\a.png",
         "a/../../b.png", "//host/a.png", "\\a.png"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_of_a_folder_on_any_system(name, tmp_path):
    assert leads_out(name) and not is_plain_name(name)
    (tmp_path / "a.jsonl").write_text(json.dumps({"instruction": "a", "image": name}))
    with pytest.raises(InputError, match="leads out"):
        open_dataset(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.png", "sub/a.png", "a..b.png", "...png", "ü ö.png"])
def test_names_that_stay_inside(name):
    assert not leads_out(name)


@pytest.mark.parametrize(
    "name", ["CON", "nul.txt", "COM1.safetensors", "a.", "a ", "a:b", "", "a\0"]
)
def test_names_that_windows_does_not_have(name):
    assert not is_plain_name(name)
    assert is_plain_name("model-00001-of-00002.safetensors")


@pytest.mark.parametrize("file", ["../x.arrow", "/etc/passwd", None, 7, {}, "a\0"])
def test_a_saved_dataset_that_names_other_files(tmp_path, file):
    pytest.importorskip("datasets")
    (tmp_path / "dataset_info.json").write_text("{}")
    for files in ([{"filename": file}], [file], file):
        (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
        refused(lambda: open_dataset(tmp_path), "cannot be read as a dataset")


@pytest.mark.parametrize("name", ["demo\n", "a\r\nb.png", "a\u2028b.png"])
def test_a_name_of_several_lines_is_told_on_one(name):
    refused(lambda: load_image(name), "no such file")
    refused(lambda: load_checkpoint(name))


@pytest.mark.parametrize("name", ["x" * 10_000, "a\nb.lora_A.weight", "[1, 1]" * 999])
def test_names_in_a_message_are_short_and_on_one_line(tmp_path, place, name):
    (tmp_path / "a.jsonl").write_text(json.dumps({name: "a"}))
    refused(lambda: open_dataset(tmp_path / "a.jsonl"), "unknown")
    layer = f"model.transformer.blocks.0.{name}"
    file = tmp_path / "a.safetensors"
    for tensors in ({layer: PAIR["x.lora_A.weight"]}, {f"{layer}.lora_A.weight": torch.ones(2, 4)}):
        save_file(tensors, file)
        refused(lambda: read_adapter(file))


@pytest.mark.parametrize("provenance", [1, [], "x", {"licences": 3}, {"licences": {"a": []}}])
def test_the_provenance_of_a_packed_file_may_be_anything(place, tmp_path, provenance):
    content = (place.folder / "packed" / "a.safetensors").read_bytes()
    header, data = safetensors_parts(content)
    about = json.loads(header["__metadata__"]["mmada_parallel"]) | {"provenance": provenance}
    header["__metadata__"]["mmada_parallel"] = json.dumps(about)
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(header, data))
    assert load_checkpoint(tmp_path / "a.safetensors").variant.id == "A"


@pytest.mark.parametrize("family", [7, [], {}, None, "x", "A" * 10**5])
def test_a_noted_family_that_is_none(folder, family):
    (folder / NOTE).write_text(json.dumps({"family": family}))
    refused(lambda: load_checkpoint(folder))
    (folder / NOTE).write_text("[" * 100_000)
    refused(lambda: load_checkpoint(folder), NOTE)


@pytest.mark.parametrize("name", ["..", "../a.png", "/etc/passwd", "a\0", "", 7, None])
def test_votes_that_name_other_files(tmp_path, name):
    step = tmp_path / "votes" / "step-00001"
    step.mkdir(parents=True)
    answer = {"text": "red", "picture": name}
    group = {"instruction": "a", "source": None, "winners": None, "answers": [answer, answer]}
    (step / "votes.json").write_text(json.dumps({"answers": "0", "groups": [group]}))
    refused(lambda: VotingRound(tmp_path, 1).groups(), "votes.json")


def test_votes_beside_a_text_that_is_none(tmp_path):
    step = tmp_path / "votes" / "step-00001"
    step.mkdir(parents=True)
    answer = {"text": "red", "picture": "a.png", "note": "\ud800"}
    group = {"instruction": "a", "source": None, "winners": None, "answers": [answer, answer]}
    (step / "votes.json").write_text(json.dumps({"answers": "0", "\udfff": 1, "groups": [group]}))
    waiting = VotingRound(tmp_path, 1)
    waiting.vote(1, [2])
    data = json.loads((step / "votes.json").read_text(encoding="utf-8"))
    assert data["groups"][0]["winners"] == [2] and data["\udfff"] == 1


@pytest.mark.parametrize("line", ["method = []", "method = {}", "method = 7", "[" * 9000, "a"])
def test_run_files_without_a_method(tmp_path, line):
    (tmp_path / "run.toml").write_text(line)
    refused(lambda: read_run_file(tmp_path / "run.toml", {}, []), "run.toml")


ENORMOUS = 2**34


@pytest.mark.parametrize("copy, name", [
    ("A", "model.safetensors"), ("packed", "a.safetensors"), ("kohya", "a.safetensors"),
    ("tokens", "a.safetensors"), ("data", "a.png"), ("run", "log.jsonl"),
    ("run", "codes.safetensors"), ("picks", "a.preference.safetensors"),
])  # fmt: skip
def test_a_file_that_is_larger_than_memory(place, tmp_path, copy, name):
    reader = next(reader for reader in READERS.values() if reader.copy == copy)
    folder = tmp_path / copy
    shutil.copytree(place.folder / copy, folder)
    with (folder / name).open("r+b") as stream:
        stream.truncate(ENORMOUS)
    rng = random.Random(1)  # of the dataset, the folder
    assert judged(lambda: reader.read(place, folder, rng))[0] in ("ok", "input")


@pytest.mark.parametrize("name", ["codes.safetensors", "run.pt", "log.jsonl"])
def test_a_pipe_in_place_of_a_runs_file(place, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(place.folder / "run", folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert judged(lambda: READERS["run folder"].read(place, folder, None))[0] in ("ok", "input")


@pytest.mark.parametrize("value", [1.5, "2", True, -1, 2**63, [1], float("nan")])
def test_counts_and_words_that_are_none(place, value):
    for name in ("batch", "text_length"):
        refused(lambda: encode_instruction(place.model, "red", RED, **{name: value}), name)  # noqa: B023
    refused(lambda: words_selected(["a "], value if value != "2" else None), "words")

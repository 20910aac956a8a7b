"""The smallest CLIP for each fault that was found."""

import json
import shutil

import pytest
from mmada_parallel.training.rewards.clip_files import check_clip, read_towers
from safetensors.torch import load_file, save_file

from .readers import RED
from .test_corpus import edit, refused


def clip_of(place, folder):
    shutil.copytree(place.folder / "clip", folder)
    return folder


@pytest.mark.parametrize("change", [
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}}},
    {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaa"}]}},
    {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 20}},
    {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": 7}},
])  # fmt: skip
def test_words_of_a_clip_that_would_not_end(place, tmp_path, change):
    clip = clip_of(place, tmp_path / "clip")
    check_clip(clip)
    edit(clip / "tokenizer.json", **change)
    refused(lambda: check_clip(clip), "tokenizer.json")


def test_words_that_are_added_to_a_clip_without_end(place, tmp_path):
    clip = clip_of(place, tmp_path / "clip")
    many = [f"<{i}>" for i in range(200_000)]
    edit(clip / "tokenizer_config.json", additional_special_tokens=many)
    refused(lambda: check_clip(clip), "tokenizer_config.json", "tokens of")


def test_words_that_the_model_of_a_clip_lacks(place, tmp_path):
    clip = clip_of(place, tmp_path / "clip")
    edit(clip / "tokenizer_config.json", pad_token="<new>")
    towers = read_towers(clip, "cpu")
    refused(lambda: towers.texts(["make it red", ""], "cpu"), "words that its model lacks")


def test_the_words_of_the_released_clip_are_read(place, tmp_path):
    clip = clip_of(place, tmp_path / "clip")
    pattern = (
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|"
        r"[^\s\p{L}\p{N}]+"
    )
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    edit(clip / "tokenizer.json", pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}},
         normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces]})  # fmt: skip
    check_clip(clip)


def test_a_clip_that_would_download_its_tower(place, tmp_path):
    pytest.importorskip("open_clip")
    clip = clip_of(place, tmp_path / "clip")
    config = json.loads((clip / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= {"timm_model_name": "x", "timm_model_pretrained": True}
    (clip / "open_clip_config.json").write_text(json.dumps(config))
    refused(lambda: check_clip(clip), "to be downloaded")


@pytest.mark.parametrize("tower, change, said", [
    ("text_cfg", {"context_length": 8192, "width": 16}, "context_length"),
    ("vision_cfg", {"attentional_pool": True, "attn_pooler_queries": 10**7}, "cannot hold"),
    ("vision_cfg", {"timm_model_name": "vit_giant_patch14_224"}, "cannot hold"),
    ("text_cfg", {"tokenizer_kwargs": {"bpe_path": "/x"}}, "to be downloaded"),
])  # fmt: skip
def test_a_clip_of_sizes_that_its_weights_contradict(place, tmp_path, tower, change, said):
    pytest.importorskip("open_clip")
    clip = clip_of(place, tmp_path / "clip")
    config = json.loads((clip / "open_clip_config.json").read_text())
    config["model_cfg"][tower] |= change
    (clip / "open_clip_config.json").write_text(json.dumps(config))
    refused(lambda: read_towers(clip, "cpu"), said, seconds=4, memory=2**29)


def test_a_clip_that_enlarges_pictures_beyond_reason(place, tmp_path):
    shutil.copytree(place.folder / "transformers", tmp_path / "clip")
    sizes = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 10**7}}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(sizes))
    refused(lambda: check_clip(tmp_path / "clip"), "preprocessor_config.json", "width 10000000")


def test_a_clip_that_prepares_pictures_for_another(place, tmp_path):
    pytest.importorskip("open_clip")
    clip = clip_of(place, tmp_path / "clip")
    edit(clip / "open_clip_config.json", preprocess_cfg={"mean": [0.5, 0.5], "std": [1, 1]})
    towers = read_towers(clip, "cpu")
    refused(lambda: towers.images([RED], "cpu"), "cannot read pictures as its settings say")


def test_a_clip_that_names_another_model(place, tmp_path):
    shutil.copytree(place.folder / "transformers", tmp_path / "clip")
    check_clip(tmp_path / "clip")
    (tmp_path / "clip" / "adapter_config.json").write_text('{"base_model_name_or_path": "/x"}')
    refused(lambda: check_clip(tmp_path / "clip"), "adapter_config.json")


def test_a_clip_whose_weights_are_not_numbers(place, tmp_path):
    pytest.importorskip("open_clip")
    clip = clip_of(place, tmp_path / "clip")
    weights = load_file(clip / "open_clip_model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    for value in (weights[name], weights["text_projection"]):
        value.fill_(float("nan"))
    save_file(weights, clip / "open_clip_model.safetensors")
    towers = read_towers(clip, "cpu")
    refused(lambda: towers.texts(["red"], "cpu"), "not finite numbers")

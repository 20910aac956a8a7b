"""The smallest CLIP for each fault that was found."""

import json
import shutil

import pytest
from mmada_parallel.training.rewards.clip_files import check_clip, read_towers
from safetensors.torch import load_file, save_file

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
    refused(lambda: check_clip(clip), "tokenizer_config.json", "200000 tokens")


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

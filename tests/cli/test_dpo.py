"""``train dpo`` on picks, on a model that has learnt nothing."""

import pytest
import torch
from mmada_parallel.mmp_core import SamplerSettings, denoise, encode_instruction, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.adapters import read_adapter
from mmada_parallel.training.dpo.preferences import save_preference

FEW = ("--steps", 2, "--rank", 2, "--masks", 2, "--device", "cpu", "--micro-batch", 4)


@pytest.fixture
def picks(checkpoint, tmp_path):
    model = load_checkpoint(checkpoint, dtype=torch.float32)
    prompt = encode_instruction(model, "draw a red star on white", batch=3)
    settings = SamplerSettings(text_steps=2, image_steps=2, text_temperature=2.0)
    batch = denoise(model, prompt, settings).final
    save_preference(tmp_path / "picks", model, prompt, batch, 1)
    return tmp_path / "picks"


def test_picks_make_an_adapter_that_a_run_file_makes_again(run, checkpoint, picks, tmp_path):
    options = ("--model", checkpoint, "--data", picks, *FEW, "--output", tmp_path / "a.safetensors")
    code, out, err = run("train", "dpo", *options, "--learning-rate", 1e-2)
    assert code == 0, err
    assert "(2 steps)" in out and "1 picks, 2 comparisons" in err
    state, metadata = read_adapter(tmp_path / "a.safetensors")
    assert metadata["training"] == "dpo"
    assert any(value.abs().max() > 0 for name, value in state.items() if "lora_B" in name)
    again = ("--output", tmp_path / "b.safetensors", "--run-folder", tmp_path / "b")
    code, out, err = run("train", "file", tmp_path / "a-run" / "run.toml", *again)
    assert code == 0, err
    other, _ = read_adapter(tmp_path / "b.safetensors")
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    code, out, err = run("train", "file", tmp_path / "b" / "run.toml", "--resume", "--steps", 3)
    assert code == 0 and "(3 steps)" in out, err


def test_a_folder_without_picks_is_refused(run, checkpoint, tmp_path):
    options = ("--model", checkpoint, "--output", tmp_path / "a.safetensors")
    code, _, err = run("train", "dpo", *options, "--data", tmp_path)
    assert code == 2 and "holds no picks" in err

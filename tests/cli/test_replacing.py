"""No command replaces a file that it reads."""

import pytest
import torch
from mmada_parallel.mmp_core import SamplerSettings, denoise, encode_instruction, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.training.dpo.preferences import save_preference
from mmada_parallel.training.weights.adapter_files import base_metadata, save_adapter
from mmada_parallel.training.weights.policies import LoRA

SFT = "train sft --data demo --cases 4 --steps 1 --model MODEL"
DPO = "train dpo --data picks --steps 1 --model MODEL"
PARARL = "train pararl --data demo --steps 1 --model MODEL"
DRAW = "generate draw --out z.png"
FILES = {
    "adapter": "a.safetensors",
    "packed": "packed.safetensors",
    "pick": "picks/b.preference.safetensors",
    "clip": "clip/open_clip_model.safetensors",
    "scene": "scene.png",
    "list": "list.txt",
    "config": "model/config.json",
}


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_checkpoint(checkpoint, dtype=torch.float32)


@pytest.fixture
def here(tmp_path, scene, checkpoint, model):
    """A folder with one file of each kind that commands read."""
    convert(checkpoint, tmp_path / "packed.safetensors")
    save_adapter(tmp_path / "a.safetensors", LoRA(model.transformer, rank=2), base_metadata(model))
    (tmp_path / "list.txt").write_text("draw a red circle\n")
    prompt = encode_instruction(model, "draw a red star on white", batch=2)
    settings = SamplerSettings(text_steps=2, image_steps=2, text_temperature=2.0)
    answers = denoise(model, prompt, settings).final
    pick = save_preference(tmp_path / "picks", model, prompt, answers, 0)
    pick.rename(tmp_path / "picks" / "b.preference.safetensors")
    (tmp_path / "run").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "file, command",
    [
        ("adapter", "convert MODEL FILE --lora FILE"),
        ("adapter", "convert MODEL FILE --lora ./FILE:0.5"),
        ("packed", "train sft --data demo --cases 4 --steps 1 --model FILE --output FILE"),
        ("adapter", f"{SFT} --lora FILE --output FILE"),
        ("adapter", f"{SFT} --existing-lora FILE --output run/../FILE"),
        ("pick", f"{DPO} --output FILE"),
        ("clip", f"{PARARL} --reward clip:clip --output FILE"),
        ("scene", "compare run draw --image FILE --model MODEL --out FILE"),
        ("list", "generate @FILE --out z.png --text-out FILE"),
        ("packed", f"{DRAW} --model FILE --text-out FILE"),
        ("adapter", f"{DRAW} --model MODEL --lora FILE --text-out FILE"),
        ("config", f"{DRAW} --model model --text-out FILE"),
    ],
)
def test_a_file_that_is_read_is_not_replaced(run, here, checkpoint, monkeypatch, file, command):
    monkeypatch.chdir(here)
    (here / "clip").mkdir()
    (here / FILES["clip"]).write_bytes(b"weights")
    (here / "model").symlink_to(checkpoint)
    before = (here / FILES[file]).read_bytes()
    command = command.replace("FILE", FILES[file]).replace("MODEL", str(checkpoint))
    code, out, err = run(*command.split(), "--quiet")
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1
    assert "would replace it" in err or "is read by this conversion" in err
    assert (here / FILES[file]).read_bytes() == before

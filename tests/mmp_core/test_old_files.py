"""Files that version 0.1.0 wrote load and give what they gave then."""

import json
from pathlib import Path

import torch
from mmada_parallel.mmp_core import SamplerSettings, denoise, encode_instruction, load_checkpoint

FOLDER = Path(__file__).parent / "old_files"
GAVE = FOLDER / "gave.json"


def tokens(file):
    """What the packed checkpoint ``file`` answers, by greedy steps that each decide much."""
    model = load_checkpoint(file, device="cpu", dtype=torch.float32)
    prompt = encode_instruction(model, "make it red", text_length=6)
    settings = SamplerSettings(
        seed=1, text_steps=3, image_steps=3, image_temperature=0.0, joint_guidance=0.0
    )
    final = denoise(model, prompt, settings).final
    return {"text": final.text.tolist(), "image": final.image.tolist()}


def test_a_packed_file_gives_the_same_tokens():
    file = FOLDER / "old_int8.safetensors"
    assert tokens(file) == json.loads(GAVE.read_text())[file.name]

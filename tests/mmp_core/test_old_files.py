"""Files that landed versions wrote load and give what they gave then (see old_files/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from mmada_parallel.mmp_core import SamplerSettings, denoise, encode_instruction, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.tokens import load_tokens
from mmada_parallel.tests.mmp_core import tiny

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


@pytest.mark.parametrize("name", json.loads(GAVE.read_text()))
def test_a_packed_file_gives_the_same_tokens(name):
    assert tokens(FOLDER / name) == json.loads(GAVE.read_text())[name]


@pytest.mark.parametrize(
    "name, text, image, placed",
    [
        ("unplaced", [[5, 12, 12, 12]], [[3, 3, 3, 3], [3, 8, 3, 3], [3, 3, 3, 3]], 0),
        ("placed", [[12, 12, 12, 5]], [[9, 3, 3, 3], [8, 9, 9, 3], [3, 8, 8, 3]], 1),
    ],
)
def test_saved_tokens_are_the_same(tmp_path, name, text, image, placed):
    model = load_checkpoint(tiny.write_checkpoint(tmp_path / "A", "A"))
    state = load_tokens(FOLDER / f"{name}.tokens.safetensors", model)
    assert state.text.tolist() == text and state.image.tolist() == [image]
    assert len(state.placement or ()) == placed

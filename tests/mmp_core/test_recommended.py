"""A checkpoint may say which guidance is best for it."""

import json

import pytest
import torch
from mmada_parallel.cli import model as cli_model
from mmada_parallel.cli.main import build_parser
from mmada_parallel.mmp_core import (
    InputError,
    SamplerSettings,
    denoise,
    encode_instruction,
    load_checkpoint,
)

from . import tiny


@pytest.fixture
def folder(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model", "A")


def says(folder, guidance):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"recommended_guidance": guidance}))


@pytest.mark.parametrize("guidance", [0, 1.5])
def test_a_checkpoint_s_own_guidance_is_recommended(folder, guidance):
    before = load_checkpoint(folder, dtype=torch.float32)
    says(folder, guidance)
    model = load_checkpoint(folder, dtype=torch.float32)
    profile = SamplerSettings.of_profile
    chosen = profile("recommended", model.variant, config=model.config)
    assert chosen.joint_guidance == guidance
    assert profile("recommended", before.variant, config=before.config).joint_guidance == 3.5
    quick = profile("quick look", model.variant, config=model.config)
    assert quick.joint_guidance == guidance and quick.text_steps < chosen.text_steps
    assert profile("reference", model.variant, config=model.config) == profile(
        "reference", before.variant
    )
    own = profile("recommended", model.variant, config=model.config, joint_guidance=2.0)
    assert own.joint_guidance == 2.0
    args = build_parser().parse_args(["generate", "red", "--text-steps", "3"])
    assert cli_model.settings_of(args, model, 1).joint_guidance == guidance


def test_it_is_what_denoise_takes(folder):
    says(folder, 0)
    model = load_checkpoint(folder, dtype=torch.float32)
    prompt = encode_instruction(model, "make it red")
    runs = []
    hook = model.transformer.register_forward_hook(lambda *_: runs.append(1))
    trajectory = denoise(model, prompt)
    hook.remove()
    assert len(runs) == trajectory.total_steps  # one branch each


@pytest.mark.parametrize("guidance", [-1, 101, "3", True, float("nan")])
def test_a_guidance_that_is_none_is_refused(folder, guidance):
    says(folder, guidance)
    with pytest.raises(InputError, match="recommended_guidance"):
        load_checkpoint(folder)

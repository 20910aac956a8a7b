"""A tiny random checkpoint with the demo's own vocabulary and layout: fast, and it knows nothing."""

import json

import pytest
import torch
from mmada_parallel.cli import main
from mmada_parallel.demo.render import render
from mmada_parallel.demo.tokenizer import model_config, write_tokenizer
from mmada_parallel.demo.vq import save_vq, vq_config
from mmada_parallel.demo.world import task
from mmada_parallel.mmp_core.config import ModelConfig
from mmada_parallel.mmp_core.image_tokenizer import AmusedVQ
from mmada_parallel.mmp_core.transformer import MaskedDiffusionTransformer
from mmada_parallel.training.run import initialise
from safetensors.torch import save_file

SIZES = {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 32}
EDIT = task(0, kinds=("recolour",))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a random model in the released layout."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    folder.mkdir()
    config = model_config(**SIZES)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    model = MaskedDiffusionTransformer(ModelConfig.from_dict(config))
    initialise(model, 0)
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.manual_seed(0)
    save_vq(AmusedVQ(vq_config()), folder / "vqvae")
    return folder


@pytest.fixture
def scene(tmp_path):
    """The picture of ``EDIT``, as a file."""
    file = tmp_path / "scene.png"
    render(EDIT.before).save(file)
    return file


@pytest.fixture
def run(capsys):
    """``run(*arguments)``: exit code, standard output and standard error of the command."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run

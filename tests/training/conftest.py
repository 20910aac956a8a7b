import math
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.demo.dataset import WorldCases
from mmada_parallel.demo.tokenizer import model_config, write_tokenizer
from mmada_parallel.mmp_core import interruption
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer
from mmada_parallel.mmp_core.variants.mmada_parallel_a import LayoutA
from mmada_parallel.training.sft.run import SFTRun
from mmada_parallel.training.weights.initial import initialise
from mmada_parallel.training.weights.policies import FullWeights
from transformers import PreTrainedTokenizerFast

CONFIG = model_config(d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=64)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """However slow the machine is, a picture that is read is not asked about in between."""
    monkeypatch.setattr(interruption, "EVERY", math.inf)


@pytest.fixture(scope="session")
def layout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return LayoutA(PreTrainedTokenizerFast.from_pretrained(folder), CONFIG)


@pytest.fixture
def dataset(layout):
    return WorldCases(layout)


@pytest.fixture
def model():
    model = MaskedDiffusionTransformer(ModelConfig.from_dict(CONFIG))
    initialise(model, 0)
    return model


@pytest.fixture
def from_nothing(layout, dataset):
    """``from_nothing(folder, settings)``: an SFT run of all weights of a small transformer."""

    def start(folder, settings, **options):
        transformer = MaskedDiffusionTransformer(ModelConfig.from_dict(CONFIG))
        initialise(transformer, 0)
        model = SimpleNamespace(transformer=transformer, layout=layout, device=torch.device("cpu"))
        policy = FullWeights(transformer)
        return SFTRun(model, dataset, settings, folder, policy=policy, **options)

    return start

import pytest
from mmada_parallel.demo.dataset import WorldDataset
from mmada_parallel.demo.tokenizer import model_config, write_tokenizer
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer
from mmada_parallel.mmp_core.variants.mmada_parallel_a import LayoutA
from mmada_parallel.training.sft.pretrain import initialise
from transformers import PreTrainedTokenizerFast

CONFIG = model_config(d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=64)


@pytest.fixture(scope="session")
def layout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return LayoutA(PreTrainedTokenizerFast.from_pretrained(folder), CONFIG)


@pytest.fixture
def dataset(layout):
    return WorldDataset(layout)


@pytest.fixture
def model():
    model = MaskedDiffusionTransformer(ModelConfig.from_dict(CONFIG))
    initialise(model, 0)
    return model

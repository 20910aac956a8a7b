"""Recipe checkpoints, loaded once per session."""

import functools

import pytest
import torch
from mmada_parallel.mmp_core import load_checkpoint
from mmada_parallel.mmp_core.image.magvit import MagvitV2
from mmada_parallel.tests.parity import golden
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def recipe_model(tmp_path_factory):
    """``recipe_model(name, dtype, family)`` loads a golden checkpoint; unknown names fail.

    Variant M's gets a small image tokenizer of its own, since no case decodes with it.
    """
    magvit = tmp_path_factory.mktemp("magvitv2")
    save_file(MagvitV2({"ch": 32}).state_dict(), magvit / "model.safetensors")
    (magvit / "config.json").write_text('{"ch": 32}')

    @functools.cache
    def load(name, dtype, family=None):
        assert name in golden.MODELS, f"unknown golden model {name}"
        assert dtype in golden.DTYPES, f"unknown golden dtype {dtype}"
        own = {"image_tokenizer_path": magvit} if golden.MODELS[name]["variant"] == "M" else {}
        place = golden.checkpoint(name, dtype)
        return load_checkpoint(place, dtype=golden.DTYPES[dtype], family=family, **own)

    return load


@pytest.fixture(autouse=True)
def one_thread():
    """The golden data were made with one thread; another number sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

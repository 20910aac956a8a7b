import pytest
import torch
from mmada_parallel.mmp_core import MASKED, InputError, TokenState, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.tokens import (
    FORMAT,
    load_tokens,
    save_tokens,
    token_identity,
)
from mmada_parallel.tests.mmp_core import tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module", params="AM")
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return load_checkpoint(tiny.write_checkpoint(folder, request.param))


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo")


STATE = TokenState(torch.tensor([[1, MASKED, 2]]), torch.tensor([[[3, MASKED], [0, 4]]]))


def test_tokens_come_back_as_they_were(model, tmp_path):
    save_tokens(tmp_path / "a.safetensors", STATE, model, {"prompt": "{}"})
    again = load_tokens(tmp_path / "a.safetensors", model)
    assert torch.equal(again.text, STATE.text) and torch.equal(again.image, STATE.image)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"prompt": "{}", "format": FORMAT, **token_identity(model)}


def test_tokens_of_another_checkpoint_are_refused(model, demo, tmp_path):
    save_tokens(tmp_path / "a.safetensors", STATE, model)
    with pytest.raises(InputError, match="was made with another"):
        load_tokens(tmp_path / "a.safetensors", demo)


def test_a_checkpoint_trained_further_takes_the_same_tokens(demo, tmp_path):
    other = load_checkpoint("demo")
    with torch.no_grad():
        for parameter in other.transformer.parameters():
            parameter.mul_(1.1)
    save_tokens(tmp_path / "a.safetensors", STATE, demo)
    assert torch.equal(load_tokens(tmp_path / "a.safetensors", other).text, STATE.text)
    with torch.no_grad():
        other.image_tokenizer.quantize.embedding.weight[0, 0] += 1
    with pytest.raises(InputError, match="another codebook"):
        load_tokens(tmp_path / "a.safetensors", other)


def test_other_files_are_refused_in_one_sentence(model, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_tokens(tmp_path / "absent.safetensors", model)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        load_tokens(tmp_path / "broken.safetensors", model)
    save_tokens(tmp_path / "a.safetensors", STATE, model)
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="holds no tokens"):
        load_tokens(tmp_path / "bare.safetensors", model)
    for name, value in (("image", 99999), ("image", -5), ("text", -7), ("text", 10**6)):
        wrong = {"text": STATE.text.clone(), "image": STATE.image.clone()}
        wrong[name].flatten()[0] = value
        save_tokens(tmp_path / "wrong.safetensors", TokenState(**wrong), model)
        with pytest.raises(InputError, match=f"damaged: its {name}"):
            load_tokens(tmp_path / "wrong.safetensors", model)
    save_file({"text": STATE.text}, tmp_path / "half.safetensors", {"format": FORMAT})
    with pytest.raises(InputError, match="cannot be read"):
        load_tokens(tmp_path / "half.safetensors", model)

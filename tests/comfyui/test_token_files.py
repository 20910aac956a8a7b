"""Load Tokens in the real ComfyUI: files that its list has, and those that it does not reach."""

import shutil

import pytest
import torch
from mmada_parallel.mmp_core import TokenState, load_checkpoint
from mmada_parallel.mmp_core.checkpoint.tokens import save_tokens

LOAD = "MMaDAParallelLoadTokens"


def prompt(name):
    loader = {"checkpoint": "demo", "dtype": "auto", "image_tokenizer": "auto"}
    return {
        "1": {"class_type": "MMaDAParallelLoader", "inputs": loader},
        "2": {"class_type": LOAD, "inputs": {"model": ["1", 0], "file": name}},
        "3": {
            "class_type": "MMaDAParallelDecodeText",
            "inputs": {"model": ["1", 0], "tokens": ["2", 0]},
        },
    }


@pytest.fixture
def saved(comfy):
    """Tokens in a folder of the output folder, and deeper."""
    tokens = TokenState(torch.full((1, 4), 5), torch.zeros(1, 4, 4, dtype=torch.int64))
    root = comfy.base / "output" / "mine"
    for folder in (root, root / "a" / "b"):
        folder.mkdir(parents=True, exist_ok=True)
        save_tokens(folder / "x.tokens.safetensors", tokens, load_checkpoint("demo"))
    yield
    shutil.rmtree(root)


def test_a_name_that_was_saved_works_from_any_depth(comfy, saved):
    listed = comfy.object_info()[LOAD]["input"]["required"]["file"]
    options = listed[1]["options"] if listed[0] == "COMBO" else listed[0]
    deep = "mine/a/b/x.tokens.safetensors [output]"
    assert "mine/x.tokens.safetensors [output]" in options and deep not in options
    for name in ("mine/x.tokens.safetensors [output]", deep):
        done = comfy.run(prompt(name))
        assert done.status == "success", done.error
    with pytest.raises(Exception, match="is neither in"):
        comfy.run(prompt("../x.tokens.safetensors [output]"))

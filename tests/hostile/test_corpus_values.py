"""The smallest case of each fault of an eighth search: few characters or numbers of much memory."""

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import encode_instruction
from mmada_parallel.mmp_core.checkpoint.tokens import load_tokens, save_tokens
from mmada_parallel.mmp_core.image.files import load_image, load_mask, read_original
from mmada_parallel.training.loop.folder import RunFolder
from safetensors import safe_open
from safetensors.torch import save_file

from .limits import judged
from .test_corpus import refused

LISTS = "[" + "[]," * 5_000_000 + "[]]"


def test_a_log_of_one_line_of_lists(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log({"step": 1, "loss": 0.5})
    with folder.log_file.open("a") as file:
        file.write(LISTS + "\n")
    read = judged(lambda: print(folder.lines()), seconds=1, memory=2**28)
    assert read[0] == "ok" and folder.lines() == [{"step": 1, "loss": 0.5}]


def test_tokens_with_a_placement_of_lists(place, tmp_path):
    file = tmp_path / "tokens.safetensors"
    prompt = encode_instruction(place.model, "make it red", torch.zeros(64, 48, 3))
    save_tokens(file, prompt.initial, place.model)
    with safe_open(file, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}
        metadata = stored.metadata() | {"placement": LISTS}
    save_file(tensors, file, metadata)
    refused(lambda: load_tokens(file, place.model), "characters of JSON", seconds=1, memory=2**28)


@pytest.mark.parametrize("read", [load_image, load_mask, read_original])
@pytest.mark.parametrize("shape", [(60_000, 60_000, 3), (60_000, 60_000), (1, 60_000, 60_000, 4)])
def test_pixels_that_are_not_in_memory(read, shape):
    one = (1,) * (len(shape) - 1) + shape[-1:]
    for pixels in (
        torch.zeros(one).expand(shape),
        torch.zeros(one, dtype=torch.uint8).expand(shape),
        np.broadcast_to(np.zeros(one, np.float32), shape),
    ):
        said = "more than 178 million pixels: make it smaller. It is 60000x60000"
        refused(lambda pixels=pixels: read(pixels), said, seconds=1, memory=2**28)


def test_large_pixels_take_little_more_than_the_picture():
    pixels = torch.zeros(1, 1, 3).expand(6000, 6000, 3)
    assert judged(lambda: load_image(pixels), memory=2**28 + 2**27)[0] == "ok"

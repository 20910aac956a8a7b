"""The picture book's image tokenizer is gone on from, part by part."""

import torch
from mmada_parallel.demo.picture_book.vq import FINE_WEIGHT, fine_weight, train_vq
from mmada_parallel.mmp_core.checkpoint.load import PICTURE_BOOK
from safetensors.torch import load_file

WEIGHTS = "vqvae/diffusion_pytorch_model.safetensors"


def test_a_part_of_no_steps_keeps_the_weights_that_it_begins_with(tmp_path):
    sizes = {"encoder_steps": 0, "decoder_steps": 4, "pictures": 1}
    train_vq(tmp_path, device="cpu", start=PICTURE_BOOK, **sizes)
    before, after = load_file(PICTURE_BOOK / WEIGHTS), load_file(tmp_path / WEIGHTS)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {name for name in before if name.startswith(("encoder.", "quant"))} <= same
    assert {name for name in before if name.startswith("decoder.")} - same
    assert not list(tmp_path.glob("*.pt"))


def test_fine_lines_weigh_more_than_smooth_parts():
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., 16, 16] = 1
    weight = fine_weight(pixels)[0, 0]
    assert weight[0, 0] == 1 and 1 < weight[16, 16] == weight.max() <= 1 + FINE_WEIGHT

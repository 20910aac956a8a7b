"""Weights and activations that are not finite numbers are named, with the layer."""

import math

import pytest
import torch
from mmada_parallel.mmp_core import SamplerSettings, decode_image, denoise
from mmada_parallel.mmp_core.checkpoint.adapters import adapter_state
from mmada_parallel.mmp_core.checkpoint.load import load_checkpoint
from mmada_parallel.mmp_core.errors import InputError

from . import tiny

SETTINGS = SamplerSettings(text_steps=2, image_steps=2)


@pytest.fixture(params=["A", "M"])
def model(request):
    return tiny.TinyModel(request.param, torch.float32)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("preset", ["corrected", "upstream"])
def test_a_weight_that_is_no_number_is_named_by_its_layer(model, value, preset):
    model.transformer.blocks[1].q_proj.weight[0, 0] = value
    settings = SETTINGS
    if preset == "upstream":
        settings = SamplerSettings.upstream(model.variant, text_steps=2, image_steps=2)
    with pytest.raises(InputError, match="weights of block 1 .* not finite"):
        denoise(model, tiny.prompt(model.layout), settings)
    assert not model.transformer.blocks[0]._forward_hooks


@pytest.mark.parametrize("stop", [False, True])
def test_numbers_spoilt_in_a_later_step_end_in_no_result(model, stop):
    def spoil(index, total, step):
        if index == 0:
            model.transformer.blocks[1].q_proj.weight[0, 0] = math.nan
        return stop and index == 1

    settings = SamplerSettings(text_steps=4, image_steps=4)
    with pytest.raises(InputError, match="weights of block 1 .* not finite"):
        denoise(model, tiny.prompt(model.layout), settings, callback=spoil)


def test_an_overflow_of_float16_says_what_to_do(model):
    model.transformer.half()
    model.transformer.blocks[0].ff_out.weight.mul_(30_000)
    model.transformer.blocks[0].up_proj.weight.mul_(30_000)
    with pytest.raises(InputError, match="block 0 gives .* use bfloat16"):
        denoise(model, tiny.prompt(model.layout), SETTINGS)


def test_adapters_and_pixels(tmp_path):
    pair = {"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.full((4, 2), math.nan)}
    with pytest.raises(InputError, match="not finite"):
        adapter_state(pair, "it")
    loaded = load_checkpoint(tiny.write_checkpoint(tmp_path, "A"))
    loaded.image_tokenizer.decoder.conv_out.bias[0] = math.nan
    state = tiny.prompt(loaded.layout, locked=1.0).initial
    with pytest.raises(InputError, match="pixels that are not finite"):
        decode_image(loaded, state)

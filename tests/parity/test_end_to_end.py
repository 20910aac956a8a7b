"""The released variant-A command, whole: picture and instruction in, picture and text out."""

import json
import random

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import (
    MASKED,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
)
from mmada_parallel.mmp_core.image.pictures import painting_mask
from mmada_parallel.tests.parity import golden
from PIL import Image
from safetensors.torch import load_file

FOLDERS = [path.parent for path in golden.case_files("e2e/*/case.json", lumina_dimoo=False)]
KEYS = {"case", "argv", "recorded", "text", "outputs", "output_sha256", "torch", "transformers"}
OPTIONS = {
    "prompt",
    "image_path",
    "height",
    "width",
    "timesteps",
    "text_steps",
    "text_gen_length",
    "text_block_length",
    "cfg_scale",
    "cfg_img",
    "temperature",
    "text_temperature",
    "seed",
    "output_dir",
    "remasking",
    "painting_mode",
    "mask_h_ratio",
    "mask_w_ratio",
}
PIXEL_TOLERANCE = 2


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_command(folder, recipe_model):
    content = json.loads((folder / "case.json").read_text())
    assert not set(content) - KEYS, f"unknown entries {set(content) - KEYS}"
    options = read_options(content["argv"])
    data = load_file(folder / "data.safetensors")
    dtype = content["case"].get("dtype", "fp32")
    model = recipe_model("tiny-A", dtype)
    seed = int(options["seed"])
    prompt = encode(model, folder / "input.png", options, random.Random(seed))

    sequence = model.layout.model_input(prompt, prompt.initial)
    assert torch.equal(sequence.ids[0], data["input_ids"].long())
    for name, dropped in (("uncon_text", (True, False)), ("uncon_image", (False, True))):
        prefix = model.layout.prefix(prompt, drop_text=dropped[0], drop_image=dropped[1])
        assert torch.equal(prefix[0], data[name].long())

    torch.manual_seed(seed)
    final = denoise(model, prompt, settings(options)).final
    if dtype == "fp32":
        assert torch.equal(final.image.flatten(), data["image_tokens"].long())
        assert torch.equal(final.text[0], data["text_tokens"].long())
        assert decode_text(model, final) == [content["text"].removesuffix("\n")]
    expected = np.asarray(Image.open(folder / "output.png").convert("RGB"), dtype=int)
    assert np.array_equal(expected, data["output_rgb"].numpy())
    codes = data["image_tokens"].long().view(1, *final.grid)
    own = np.asarray(decode_image(model, TokenState(final.text, codes))[0], dtype=int)
    assert np.abs(own - expected).max() <= PIXEL_TOLERANCE


def read_options(arguments):
    names, values = arguments[::2], arguments[1::2]
    options = {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}
    assert not set(options) - OPTIONS, f"unknown options {set(options) - OPTIONS}"
    return options


def encode(model, picture, options, offset):
    prompt = encode_instruction(
        model,
        options["prompt"],
        picture,
        size=(int(options["width"]), int(options["height"])),
        text_length=int(options["text_gen_length"]),
        offset=offset,
    )
    if "painting_mode" not in options:
        return prompt
    height, width = prompt.image.shape[1:]
    mask = painting_mask(
        height * model.downsample,
        width * model.downsample,
        height,
        width,
        options["painting_mode"],
        float(options.get("mask_h_ratio", 0.5)),
        float(options.get("mask_w_ratio", 0.5)),
    )
    codes = torch.where(mask, MASKED, prompt.image)
    return prompt.starting_from(TokenState(prompt.initial.text, codes))


def settings(options):
    return SamplerSettings.upstream(
        text_steps=int(options["text_steps"]),
        image_steps=int(options["timesteps"]),
        text_temperature=float(options["text_temperature"]),
        image_temperature=float(options["temperature"]),
        text_guidance=float(options["cfg_scale"]),
        image_guidance=float(options["cfg_img"]),
        remasking=options.get("remasking", "low_confidence"),
        seed=int(options["seed"]),
    )

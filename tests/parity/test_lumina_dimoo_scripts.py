"""Lumina-DiMOO's prompts, crops and refusals, and its released scripts run whole."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import (
    InputError,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
)
from mmada_parallel.mmp_core.image import pictures as images
from mmada_parallel.mmp_core.pipeline import encode_seen
from mmada_parallel.mmp_core.sampler.upstream import upstream_policies
from mmada_parallel.mmp_core.state import MASKED
from mmada_parallel.mmp_core.variants.lumina_dimoo import UNDERSTAND, edit_template
from mmada_parallel.tests.parity import golden
from mmada_parallel.tests.parity.test_end_to_end import PIXEL_TOLERANCE
from mmada_parallel.tests.parity.test_lumina_dimoo import NEAR_TIES
from PIL import Image
from safetensors.torch import load_file

SCRIPTS = [path.parent for path in golden.case_files("e2e/*/case.json", lumina_dimoo=True)]
KEYS = {
    *("variant", "family", "task", "case", "argv", "recorded", "crops", "outputs", "output_wh"),
    *("output_sha256", "concat", "text", "torch", "transformers", "diffusers", "pillow"),
}
OPTIONS = {
    *("prompt", "height", "width", "timesteps", "seed", "cfg_scale", "cfg_img", "temperature"),
    *("output_dir", "painting_mode", "painting_image", "mask_h_ratio", "mask_w_ratio"),
    *("image_path", "ref_image_path", "edit_type", "steps", "gen_length", "block_length"),
}
SIZES = {"i2i": images.crop_sizes(256, 32), "mmu": images.crop_sizes(1024, 32)}


@pytest.fixture
def model(recipe_model):
    return recipe_model("tiny-A", "fp32", "lumina_dimoo")


def listed(name):
    return json.loads(golden.golden_file("modules", name).read_text())


def test_prompts(model):
    content, layout = listed("dimoo_prompts.json"), model.layout
    names = {"system", "system_other", "t2i", "i2i", "mmu", "mmu_picture_tokens"}
    assert set(content) <= names
    assert UNDERSTAND == content["system"]["text_understanding"]
    assert edit_template("", "")[0] == content["system_other"]
    picture, two = torch.zeros(1, 2, 2, dtype=torch.int64), TokenState.masked(1, 0, (2, 2))
    prompts = []
    for case in content["t2i"]:
        prompts.append((case, layout.encode_task("generate", case["prompt"], None, None, two)))
    for case in content["mmu"]:
        text = TokenState.masked(1, 4, (0, 0))
        prompts.append((case, layout.encode_task("describe", case["prompt"], picture, None, text)))
    for case in content["i2i"]:
        system, words = edit_template(case["edit_type"], case["prompt"])
        assert system == case["system"]
        prompts.append((case, layout.encode_template(system, words, picture, None, two)))
    for case, prompt in prompts:
        assert prompt.instruction[0].tolist() == case["cond_ids"], case
        if "uncond_ids" in case:
            assert prompt.unconditional[0].tolist() == case["uncond_ids"], case


def test_how_understanding_lays_out_a_picture(model):
    for case in listed("dimoo_prompts.json")["mmu_picture_tokens"]:
        height, width = case["grid_hw"]
        codes = torch.arange(height * width).view(1, height, width)
        prompt = model.layout.encode("?", codes, TokenState.masked(1, 1, (0, 0)))
        released = model.layout.released_text_input(prompt, prompt.initial).ids[0].tolist()
        ours = model.layout.model_input(prompt, prompt.initial).ids[0].tolist()
        start = prompt.instruction.shape[1] - 1
        assert released[start : start + len(case["mmu"])] == case["mmu"]
        assert ours[start : start + len(case["encoded"])] == case["encoded"]


def test_crops():
    content = listed("dimoo_crop.json")
    for task, sizes in content["crop_size_list"].items():
        assert SIZES[task] == [tuple(size) for size in sizes]
    for case in content["cases"]:
        picture = in_mode(case["img_seed"], *case["in_wh"], case["mode"]).convert("RGB")
        offset = random.Random(case["python_seed"])
        crop = images.fit_image(picture, SIZES[case["task"]], offset=offset)
        assert crop.size == tuple(case["out_wh"])
        # For understanding the reference resizes palettes and alpha before it converts.
        if case["task"] == "i2i" or case["mode"] in ("RGB", "L"):
            assert golden.sha256(np.asarray(crop)) == case["sha256"], case


def in_mode(seed, width, height, mode):
    pixels = golden.picture(seed, width, height)
    if mode == "RGBA":
        alpha = golden.picture(seed + 1000, width, height)[:, :, :1]
        return Image.fromarray(np.concatenate((pixels, alpha), axis=2))
    if mode == "L":
        return Image.fromarray(pixels[:, :, 0])
    if mode == "P":
        red, green, blue = (pixels[:, :, i].astype(int) for i in range(3))
        index = (red >> 5 << 5) | (green >> 5 << 2) | (blue >> 6)
        image = Image.fromarray(index.astype(np.uint8), "P")
        levels = [((i >> 5) * 36, (i >> 2 & 7) * 36, (i & 3) * 85) for i in range(256)]
        image.putpalette([level for entry in levels for level in entry])
        return image
    assert mode == "RGB", f"unknown mode {mode}"
    return Image.fromarray(pixels)


REFUSED = {
    "t2i, use_cache, cfg_scale 0, timesteps 8 (a step exists that is not a refresh step)": {
        "speed": "cached",
        "text_guidance": 0.0,
        "image_steps": 8,
    },
    "mmu, gen_length not a multiple of block_length": {"block_length": 5},
    "mmu, steps not a multiple of the number of blocks": {"block_length": 4, "text_steps": 5},
    "mmu, steps fewer than blocks": {"block_length": 2, "text_steps": 3},
    "mmu, remasking other": {"remasking": "entropy"},
}
"""Settings at which the reference stops, and ours says why."""
OURS = {
    "t2i, use_cache, refresh_interval 0",  # always 5 here
    "mmu, id 126081 in the question, one block",  # ends the answer
    "mmu, id 126081 in the question, two blocks",
    "i2i prompt for edit type None",
    "t2i, batch of 2",
}


def test_settings_that_stop_the_reference(model):
    for case in listed("dimoo_raises.json"):
        if case["raised"] is None or case["setting"] in OURS:
            continue
        settings, task = REFUSED[case["setting"]], case["setting"][:3]
        size = (0, 8, (0, 0)) if task == "mmu" else (0, 0, (4, 4))
        picture = torch.zeros(1, 2, 2, dtype=torch.int64) if task == "mmu" else None
        prompt = model.layout.encode("?", picture, TokenState.masked(1, *size[1:]))
        with pytest.raises(InputError):
            upstream_policies(model, prompt, SamplerSettings.upstream("D", **settings))


@pytest.mark.parametrize("folder", SCRIPTS, ids=lambda path: path.name)
def test_script(folder, model):
    content = json.loads((folder / "case.json").read_text())
    assert not set(content) - KEYS, f"unknown entries {set(content) - KEYS}"
    names = [name.removeprefix("--") for name in content["argv"][::2]]
    options = dict(zip(names, content["argv"][1::2], strict=True))
    assert not set(options) - OPTIONS, f"unknown options {set(options) - OPTIONS}"
    data = {name: tensor.long() for name, tensor in load_file(folder / "data.safetensors").items()}
    task, seed = content["task"], content["case"]["seed"]
    prompt = stored_prompt(content, options, model, folder, data["input_ids"])
    torch.manual_seed(seed)
    settings = script_settings(task, options)
    final = denoise(model, prompt, settings, record=0).final
    if task == "mmu":
        assert torch.equal(final.text[0], data["text_tokens"])
        assert decode_text(model, final) == [content["text"].removesuffix("\n")]
        return
    assert torch.equal(final.image.flatten(), data["image_tokens"])
    expected = np.asarray(Image.open(folder / "output.png").convert("RGB"), dtype=int)
    ours = np.asarray(decode_image(model, final)[0], dtype=int)
    assert ours.shape[1::-1] == tuple(content["output_wh"])
    assert np.abs(ours - expected).max() <= PIXEL_TOLERANCE


def stored_prompt(content, options, model, folder, row):
    """The prompt of the stored sequence, whose pictures are those that we crop and encode, but for
    near ties."""
    task, layout = content["task"], model.layout
    offset = random.Random(content["case"]["seed"])
    pictures = [
        images.load_image(folder / name)
        for name, option in (("input.png", "image_path"), ("reference.png", "ref_image_path"))
        if option in options
    ]
    crops = [images.fit_image(p, SIZES[task], offset=offset) for p in pictures]
    for crop, stored in zip(crops, content["crops"], strict=True):
        assert (crop.size, golden.sha256(np.asarray(crop))) == (
            tuple(stored["out_wh"]),
            stored["sha256"],
        )
    codes = [encode_seen(model, [crop]) for crop in crops]
    state = blank_state(content, options, model, folder)
    if task == "i2i":
        template = edit_template(options["edit_type"], options["prompt"])
        prompt = layout.encode_template(*template, *(*codes, None)[:2], state)
    else:
        prompt = layout.encode(options["prompt"], codes[0] if codes else None, state)
    given = layout.released_text_input if task == "mmu" else layout.model_input
    ids = given(prompt, state).ids[0]
    assert ids.shape == row.shape
    assert (ids != row).sum() <= NEAR_TIES
    prompt = with_stored_codes(prompt, row, given, layout.image_offset)
    sequence = given(prompt, state)
    initial = state.image
    if initial.numel():
        codes = row[sequence.image_positions].view_as(initial) - layout.image_offset
        state = dataclasses.replace(state, image=torch.where(initial == MASKED, MASKED, codes))
        prompt = prompt.starting_from(state)
    assert torch.equal(given(prompt, state).ids[0], row)
    return prompt


def blank_state(content, options, model, folder):
    if content["task"] == "mmu":
        return TokenState.masked(1, int(options["gen_length"]), (0, 0))
    width, height = content["output_wh"]
    state = TokenState.masked(1, 0, (height // 16, width // 16))
    if "painting_mode" not in options:
        return state
    picture = images.load_image(folder / "input.png")
    whole, grid = picture.size, state.grid
    shares = float(options["mask_h_ratio"]), float(options["mask_w_ratio"])
    painted = images.painting_mask(*whole[::-1], *grid, options["painting_mode"], *shares)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    codes = encode_seen(model, [picture])
    return dataclasses.replace(state, image=torch.where(painted, MASKED, codes))


def with_stored_codes(prompt, row, given, offset):
    """``prompt`` with the pictures' codes that ``row`` has; where each stands is told by laying out
    pictures of known codes."""
    for name in ("image", "reference"):
        codes = getattr(prompt, name)
        if codes is None:
            continue
        marks = torch.arange(1, codes.numel() + 1).view_as(codes)
        blank = dataclasses.replace(prompt, **{name: torch.zeros_like(codes)})
        marked = dataclasses.replace(prompt, **{name: marks})
        ids, nothing = (given(p, prompt.initial).ids[0] for p in (marked, blank))
        places = (ids != nothing).nonzero()[:, 0]
        stored = codes.flatten().clone()
        stored[ids[places] - offset - 1] = row[places] - offset
        prompt = dataclasses.replace(prompt, **{name: stored.view_as(codes)})
    return prompt


def script_settings(task, options):
    if task == "mmu":
        own = {"text_steps": int(options["steps"]), "block_length": int(options["block_length"])}
        own |= {"text_temperature": float(options["temperature"])}
        own |= {"reasoning_guidance": float(options["cfg_scale"])}
    else:
        own = {"image_steps": int(options["timesteps"])}
        own |= {"image_temperature": float(options["temperature"])}
        own |= {"text_guidance": float(options["cfg_scale"])}
        own |= {"image_guidance": float(options.get("cfg_img", 0))}
    return SamplerSettings.upstream("lumina_dimoo", **own, seed=None)

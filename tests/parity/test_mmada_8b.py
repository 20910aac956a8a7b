"""Every case of MMaDA-8B, which make_mmada_8b.py makes by running the released code: `upstream`
holds the same tokens at each step, and `corrected` reads the same prompts.

The reference fills an instruction up to 513 ids and masks the pads in attention; ours has none. In
half precision each step is taken from the state that the reference was in.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, SamplerSettings, TokenState, denoise
from mmada_parallel.mmp_core.sampler.loop import take_step
from mmada_parallel.mmp_core.sampler.predictor import Predictor
from mmada_parallel.mmp_core.sampler.upstream import upstream_policies
from mmada_parallel.mmp_core.state import Prompt, Step
from mmada_parallel.mmp_core.variants.registry import variant_named
from mmada_parallel.tests.parity import golden
from mmada_parallel.tests.parity.test_sampler import HALF_AGREEMENT
from PIL import Image
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data" / "mmada_8b"
FILES = sorted(file for file in DATA.glob("*.json") if file.stem != "crops")
FAMILY = "MMaDA-8B"
SLOW = ("t01", "t09", "u01", "u04", "u08", "u09")
"""Cases of many tokens, of much noise, and of another checkpoint."""


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=[pytest.mark.exhaustive] * (file.stem[:3] in SLOW), id=file.stem)
        for file in FILES
    ],
)
def test_case(file, recipe_model):
    case = read(file)
    model = recipe_model("tiny-M", case.settings["dtype"], FAMILY)
    prompt = prompt_of(case, model)
    settings = settings_of(case)
    policies = upstream_policies(model, prompt, settings)
    check_rows(case, model, prompt, policies)
    torch.manual_seed(case.settings["seed"])
    if case.settings["dtype"] == "fp32":
        trajectory = denoise(model, prompt, settings, policies=policies)
        steps, final = list(trajectory), trajectory.final
    else:
        steps = replay(case, model, prompt, policies)
        final = policies.selection.finish(steps[-1].after, steps[-1].guess)
    assert len(steps) == len(case.tensors["states"]) == case.content["model_calls"]
    check = check_picture if case.draws else check_text
    check(case, model, steps, final)
    check_random_states(case, policies)


def read(file):
    content = json.loads(file.read_text())
    tensors = golden.with_long_ids(load_file(file.with_suffix(".safetensors")))
    settings = content["case"]
    return SimpleNamespace(
        settings=settings, content=content, tensors=tensors, draws=settings["task"] == "t2i"
    )


def prompt_of(case, model):
    layout, tensors, settings = model.layout, case.tensors, case.settings
    if case.draws:
        state = TokenState(torch.zeros(1, 0, dtype=torch.long), codes_of(layout, tensors["start"]))
        return layout.encode_task("generate", settings["prompt"], None, None, state)
    task = "describe" if settings["codes"] else "answer"
    prompts = []
    for question, codes in zip(settings["prompt"], tensors["codes"], strict=True):
        state = TokenState.masked(1, settings["length"], (0, 0))
        picture = codes.view(1, 1, -1) if settings["codes"] else None
        prompts.append(layout.encode_task(task, question, picture, None, state))
    return Prompt.stack(prompts)


def codes_of(layout, ids):
    return torch.where(ids == layout.mask_id, MASKED, ids - layout.image_offset).view(1, 1, -1)


def settings_of(case):
    own = {"seed": case.settings["seed"] if case.settings.get("generator") else None}
    if case.draws:
        names = {"image_steps": "steps", "joint_guidance": "guidance"}
        names["image_temperature"] = "temperature"
    else:
        names = {"text_steps": "steps", "block_length": "block", "remasking": "remasking"}
        names |= {"text_temperature": "temperature", "reasoning_guidance": "guidance"}
    own |= {name: case.settings[key] for name, key in names.items()}
    return SamplerSettings.upstream(FAMILY, task="generate" if case.draws else "describe", **own)


def check_rows(case, model, prompt, policies):
    """All ids but the pads, in both branches."""
    branches, tensors = policies.guidance.branches, case.tensors
    row = branches["conditional"]
    if case.draws:
        assert torch.equal(row.ids[0], tensors["row"])
        assert torch.equal(branches["joint"].ids[0], tensors["unconditional_row"])
        assert model.layout.soi == row.ids[0, row.image_positions[0] - 1]
        return
    given = row.text_positions[0]
    assert torch.equal(row.ids[:, :given], tensors["row"])
    for step, ids in enumerate(tensors.get("unconditional_rows", ())):
        text = torch.where(tensors["states"][step] == model.layout.mask_id, MASKED, 0)
        assert torch.equal(branches["joint"].ids[:, :given], ids[:, :given])
        assert torch.equal(ids[:, given:] == model.layout.mask_id, text == MASKED)


def replay(case, model, prompt, policies):
    predictor = Predictor(model.transformer, model.layout, policies.guidance.branches)
    last, steps = Step.before(prompt.initial), []
    for index, ids in enumerate(case.tensors["states"]):
        if case.draws:
            state = replace(prompt.initial, image=codes_of(model.layout, ids))
        else:
            text = ids.where(ids != model.layout.mask_id, MASKED)
            state = replace(prompt.initial, text=text)
        with torch.no_grad():
            last = take_step(predictor, policies, index, replace(last, after=state))
        steps.append(last)
    return steps


def agree(case, ours, expected, what):
    if case.settings["dtype"] == "fp32":
        wrong = [i for i, (a, b) in enumerate(zip(ours, expected, strict=True)) if (a != b).any()]
        assert not wrong, f"{what} at steps {wrong}"
    else:
        same = [(a == b).float().mean() for a, b in zip(ours, expected, strict=True)]
        assert torch.stack(same).mean() >= HALF_AGREEMENT, what


def check_picture(case, model, steps, final):
    tensors, codes = case.tensors, len(case.tensors["start"])
    states = torch.stack([model.layout.image_ids(step.state.image).flatten() for step in steps])
    assert torch.equal(states, tensors["states"])
    masked = states == model.layout.mask_id
    sampled = torch.where(masked, tensors["sampled"], states - model.layout.image_offset)
    agree(case, [step.guess.image.view(codes) for step in steps], sampled, "codes")
    masking = [step.after.image.view(codes) == MASKED for step in steps]
    agree(case, masking, tensors["masking"], "masks")
    agree(case, [final.image.view(codes)], [tensors["result"]], "result")


def check_text(case, model, steps, final):
    states = torch.stack([model.layout.text_ids(step.state.text) for step in steps])
    assert torch.equal(states, case.tensors["states"])
    after = [model.layout.text_ids(step.after.text) for step in steps]
    expected = [*case.tensors["states"][1:], case.tensors["result"]]
    agree(case, after, expected, "text")
    agree(case, [model.layout.text_ids(final.text)], [case.tensors["result"]], "result")


def check_random_states(case, policies):
    states = {"global": torch.get_rng_state()}
    if case.settings.get("generator"):
        states["generator"] = policies.selection.generators[0].get_state()
    sums = {n: hashlib.sha256(s.numpy().tobytes()).hexdigest() for n, s in states.items()}
    assert sums == case.content["random_state_sha256"]


@pytest.mark.parametrize("crop", json.loads((DATA / "crops.json").read_text()), ids=str)
def test_pictures_are_cropped_as_the_reference_does(crop):
    picture = Image.fromarray(golden.picture(crop["seed"], *crop["size"]))
    seen = variant_named(FAMILY).fit(picture, (512, 512))
    assert hashlib.sha256(seen.tobytes()).hexdigest() == crop["sha256"]

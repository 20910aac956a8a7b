"""Every golden sampler case: `upstream` decides at each step what the reference decided.

fp32 cases run freely and must agree in every token, count and random draw. In half precision the
golden data are not reproducible bit for bit: at odd sequence lengths the reference's own attention
differed from call to call (about half of the recorded steps agree in every bit, the others differ
by rounding, which guidance multiplies). There each step is taken from the recorded state with the
recorded random stream: schedule, counts, sequences and draws must agree exactly, and the decisions
but for those that rounding turns.
"""

import dataclasses
import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, SamplerSettings, TokenState, denoise
from mmada_parallel.mmp_core.sampler.loop import take_step
from mmada_parallel.mmp_core.sampler.predictor import Predictor
from mmada_parallel.mmp_core.sampler.upstream import upstream_policies
from mmada_parallel.mmp_core.state import Step
from mmada_parallel.mmp_core.variants.mmada_parallel_a import OverlayGuidance
from mmada_parallel.tests.mmp_core import parsing
from mmada_parallel.tests.parity import golden
from mmada_parallel.tests.parity.test_activations import ACCUMULATED
from safetensors.torch import load_file

FILES = golden.case_files("*.json", lumina_dimoo=False)
HALF_AGREEMENT = 0.8
"""Share of decisions; 0.93 and more in the open cases."""
LOGIT = 20
"""What the golden models' logits reach, 18, and a margin."""
LOGIT_TOLERANCE = ACCUMULATED["fp32"] * torch.finfo(torch.float32).eps * LOGIT

KEYS = {
    "variant",
    "case",
    "call",
    "layout",
    "image_steps",
    "model_calls",
    "seconds",
    "rng_log",
    "generator_state_sha256",
    "global_rng_state_sha256",
    "id",
    "split",
    "robust",
    "torch",
    "transformers",
    "diffusers",
    "threads",
    "num_vq_tokens",
    "codebook_size",
    "max_seq_length",
}
CASE_KEYS = {
    "A": {
        "model",
        "dtype",
        "prompt",
        "in_hw",
        "out_hw",
        "T",
        "S",
        "timesteps",
        "cfg",
        "cfg_img",
        "tt",
        "temp",
        "remasking",
        "seed",
        "gen",
        "paint",
        "mask_h",
        "mask_w",
        "uncon_text",
        "uncon_image",
        "prefill",
        "img_seed",
    },
    "M": {
        "model",
        "dtype",
        "prompt",
        "n_in",
        "n_vq",
        "T",
        "S",
        "image_steps",
        "text_cfg",
        "image_cfg",
        "tt",
        "itemp",
        "remasking",
        "seed",
        "gen",
        "img_seed",
    },
}
CALL_KEYS = {
    "A": {
        "text_start",
        "text_end",
        "image_start",
        "seq_len",
        "newline_every",
        "text_steps",
        "text_gen_length",
        "text_block_length",
        "timesteps",
        "temperature",
        "text_temperature",
        "cfg_scale",
        "cfg_img",
        "remasking",
        "text_vocab_size",
        "codebook_size",
    },
    "M": {
        "text_cfg",
        "image_cfg",
        "text_steps",
        "image_steps",
        "remasking",
        "text_temperature",
        "image_temperature",
    },
}
STEP_TENSORS = {
    "input_ids",
    "cond_ids",
    "text_step_index",
    "text_x0",
    "text_x0_p",
    "num_transfer",
    "text_transfer",
    "image_step_index",
    "image_sampled",
    "image_selected_probs",
    "image_mask_len",
    "image_masking",
    "image_unknown",
    "image_temperature",
    "final_ids",
    "text_tokens",
    "image_tokens",
}
TENSORS = {
    "A": STEP_TENSORS
    | {"uncon_text", "uncon_image", "uncond_text_ids", "uncond_image_ids", "image_positions"},
    "M": STEP_TENSORS | {"uncond_input_ids", "uncond_ids_last"},
}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_case(file, recipe_model):
    case = read(file)
    model = recipe_model(case.settings["model"], case.settings["dtype"])
    prompt = parse(case, model)
    settings = sampler_settings(case)
    policies = policies_of(case, model, prompt, settings)
    check_plan(case, policies.plan)
    torch.manual_seed(case.settings["seed"])
    if case.settings["dtype"] == "fp32":
        trajectory = denoise(model, prompt, settings, policies=policies)
        check_steps(case, model, prompt, policies, settings, trajectory.steps)
        check_result(case, model, prompt, trajectory)
    else:
        steps = replay(case, model, prompt, policies)
        policies.selection.finish(steps[-1].after, steps[-1].guess)
        check_replayed(case, steps)
    check_random_states(case, policies)


def read(file):
    """The case as a namespace; fails on anything these checks do not know."""
    content = json.loads(file.read_text())
    tensors = load_file(file.with_suffix(".safetensors"))
    variant = content["variant"]
    assert variant in ("A", "M"), f"unknown variant {variant}"
    understood = {
        "entries": (content, KEYS),
        "case settings": (content["case"], CASE_KEYS[variant]),
        "sampler arguments": (content["call"], CALL_KEYS[variant]),
        "tensors": (tensors, TENSORS[variant]),
    }
    golden.refuse_unknown(understood)
    return SimpleNamespace(
        variant=variant,
        settings=content["case"],
        call=content["call"],
        content=content,
        tensors=golden.with_long_ids(tensors),
    )


def parse(case, model):
    """The prompt, checked to give back the reference's sequences."""
    first, call = case.tensors["cond_ids"][:1], case.call
    prompt, state = parsing.parse(model.layout, case.variant, first)
    sequence = model.layout.model_input(prompt, state)
    assert torch.equal(sequence.ids, first)
    instruction = model.layout.encode(case.settings["prompt"], prompt.image, state)
    assert torch.equal(prompt.instruction, instruction.instruction)
    assert torch.equal(prompt.unconditional, instruction.unconditional)
    if case.variant == "A":
        assert torch.equal(first[0], case.tensors["input_ids"])
        assert torch.equal(sequence.image_positions, case.tensors["image_positions"])
        assert sequence.image_positions[0] == call["image_start"]
        assert sequence.text_positions.tolist() == list(range(call["text_start"], call["text_end"]))
        assert model.layout.image_offset == call["text_vocab_size"]
        assert model.layout.codebook_size == call["codebook_size"]
        for name, dropped in (("uncon_text", "drop_text"), ("uncon_image", "drop_image")):
            drops = {"drop_text": False, "drop_image": False} | {dropped: True}
            assert torch.equal(model.layout.prefix(prompt, **drops)[0], case.tensors[name])
    else:
        answer = parsing.answer_of("M", sequence)
        assert torch.equal(first[0, : -answer.shape[1]], case.tensors["input_ids"])
        assert len(sequence.image_positions) == case.content["num_vq_tokens"]
        assert len(sequence.text_positions) + 1 == case.content["max_seq_length"]
        assert model.layout.codebook_size == case.content["codebook_size"]
        prefix = model.layout.prefix(prompt, state, drop_text=True, drop_image=True)
        assert torch.equal(prefix[0], case.tensors["uncond_input_ids"])
    return prompt


def sampler_settings(case):
    call = case.call
    own = {
        "text_steps": call["text_steps"],
        "text_temperature": call["text_temperature"],
        "remasking": call["remasking"],
        "seed": case.settings["seed"] if case.settings["gen"] else None,
    }
    if case.variant == "A":
        own |= {
            "image_steps": call["timesteps"],
            "image_temperature": call["temperature"],
            "text_guidance": call["cfg_scale"],
            "image_guidance": call["cfg_img"],
        }
    else:
        own |= {
            "image_steps": call["image_steps"],
            "image_temperature": call["image_temperature"],
            "reasoning_guidance": call["text_cfg"],
            "joint_guidance": call["image_cfg"],
        }
    return SamplerSettings.upstream(case.variant, **own)


def policies_of(case, model, prompt, settings):
    """The preset's, without the unconditional prefixes that the case did not give."""
    policies = upstream_policies(model, prompt, settings)
    given = [case.settings.get(name, True) for name in ("uncon_text", "uncon_image")]
    if all(given):
        return policies
    prefixes = [
        case.tensors[name][None] if is_given else None
        for name, is_given in zip(("uncon_text", "uncon_image"), given, strict=True)
    ]
    conditional = model.layout.model_input(prompt, prompt.initial)
    guidance = OverlayGuidance(conditional, settings, *prefixes)
    return dataclasses.replace(policies, guidance=guidance)


def check_plan(case, plan):
    image_at = [i for i, step in enumerate(plan.steps) if step.image_masked_after is not None]
    assert len(plan) == case.call["text_steps"]
    assert image_at == sorted(set(case.content["image_steps"]))
    assert image_at == case.tensors["image_step_index"].tolist()
    quotas = [plan.steps[i].text_quota[0] for i in case.tensors["text_step_index"].tolist()]
    assert quotas == case.tensors["num_transfer"].tolist()
    unknown = case.tensors["image_unknown"].sum(dim=1).tolist()
    noise = [plan.steps[i].image_noise for i in image_at]
    assert noise == pytest.approx(case.tensors["image_temperature"].tolist())
    masked = [
        max(1, min(before - 1, plan.steps[i].image_masked_after[0]))
        for i, before in zip(image_at, unknown, strict=True)
    ]
    assert masked == case.tensors["image_mask_len"].tolist()


def text_region(case, name):
    """(steps, T) of a text tensor: variant M's start with the fixed bos, which is not a token."""
    return case.tensors[name][:, 1:] if case.variant == "M" else case.tensors[name]


def check_steps(case, model, prompt, policies, settings, steps):
    ids = torch.cat([model.layout.model_input(prompt, step.state).ids for step in steps])
    assert torch.equal(ids, case.tensors["cond_ids"])
    expected = zip(
        case.tensors["text_step_index"].tolist(),
        text_region(case, "text_x0"),
        text_region(case, "text_x0_p"),
        text_region(case, "text_transfer"),
        strict=True,
    )
    for index, guess, confidence, transferred in expected:
        step = steps[index]
        undecided = step.state.text[0] == MASKED
        if not undecided.any():
            continue  # nothing to decide: the recording repeats the step before
        own = torch.where(step.guess.text[0] == MASKED, model.layout.mask_id, step.guess.text[0])
        assert torch.equal(own, guess), f"text of step {index}"
        assert torch.equal(step.text_revealed[0], transferred), f"text revealed at step {index}"
        assert_probabilities(
            step.text_confidence[0][undecided], confidence[undecided], settings.reasoning_guidance
        )
    expected = zip(
        case.tensors["image_step_index"].tolist(),
        case.tensors["image_unknown"],
        case.tensors["image_sampled"],
        case.tensors["image_selected_probs"],
        case.tensors["image_masking"],
        strict=True,
    )
    for index, unknown, sampled, probabilities, masking in expected:
        step = steps[index]
        assert torch.equal(step.state.image.flatten() == MASKED, unknown)
        assert torch.equal(step.guess.image.flatten(), sampled), f"image of step {index}"
        assert torch.equal(step.after.image.flatten() == MASKED, masking), f"masks of step {index}"
        assert_probabilities(
            step.image_confidence.flatten()[unknown],
            probabilities[unknown],
            settings.text_guidance,
            settings.image_guidance,
            settings.joint_guidance,
        )
    check_unconditional(case, model, policies, steps)


def check_unconditional(case, model, policies, steps):
    predictor = Predictor(model.transformer, model.layout, policies.guidance.branches)
    if case.variant == "M":
        joint = predictor.ids("joint", steps[-1].state)
        assert torch.equal(joint[0], case.tensors["uncond_ids_last"])
        return
    for kind in ("text", "image"):
        branch, name = f"{kind} overlay", f"uncond_{kind}_ids"
        if len(case.tensors[name]):
            updated = [
                TokenState(steps[i].after.text, steps[i].state.image)
                for i in case.tensors["image_step_index"].tolist()
            ]
            ids = torch.cat([predictor.ids(branch, state) for state in updated])
            assert torch.equal(ids, case.tensors[name])


def assert_probabilities(ours, expected, *guidance):
    """A probability is off, relative to itself, by what its logit is off, which the guidance
    ``c + s (c - u)`` multiplies by up to ``1 + 2 |s|``."""
    rtol = LOGIT_TOLERANCE * (1 + 2 * sum(map(abs, guidance)))
    torch.testing.assert_close(ours.double(), expected.double(), rtol=rtol, atol=1e-12)


def check_result(case, model, prompt, trajectory):
    after = model.layout.model_input(prompt, trajectory.steps[-1].after)
    assert torch.equal(after.ids[0], case.tensors["final_ids"])
    assert torch.equal(trajectory.final.image.flatten(), case.tensors["image_tokens"])
    text = after.ids[0, after.text_positions]
    if case.variant == "M":
        text = torch.cat((text.new_tensor([model.layout.bos]), text))
    expected, mask_id = case.tensors["text_tokens"], model.layout.mask_id
    assert torch.equal(text[text != mask_id], expected[expected != mask_id])


def replay(case, model, prompt, policies):
    """Each step from the state that the reference was in."""
    predictor = Predictor(model.transformer, model.layout, policies.guidance.branches)
    last, steps = Step.before(prompt.initial), []
    for index, ids in enumerate(case.tensors["cond_ids"]):
        state = parsing.parse(model.layout, case.variant, ids[None])[1]
        with torch.no_grad():
            last = take_step(predictor, policies, index, dataclasses.replace(last, after=state))
        steps.append(last)
    return steps


def check_replayed(case, steps):
    text = [steps[i] for i in case.tensors["text_step_index"].tolist()]
    image = [steps[i] for i in case.tensors["image_step_index"].tolist()]
    undecided = torch.cat([step.state.text for step in text]) == MASKED
    unknown = case.tensors["image_unknown"]
    after = torch.cat([step.after.image.flatten(1) for step in image]) == MASKED
    check_masked_counts(case, after.sum(dim=1))
    guessed = torch.cat([step.guess.text for step in text])
    revealed = torch.cat([step.text_revealed for step in text])
    sampled = torch.cat([step.guess.image.flatten(1) for step in image])
    agreements = {
        "text": (guessed == text_region(case, "text_x0"))[undecided],
        "text revealed": revealed == text_region(case, "text_transfer"),
        "image": (sampled == case.tensors["image_sampled"])[unknown],
        "image masks": after == case.tensors["image_masking"],
    }
    for what, agreement in agreements.items():
        share = agreement.float().mean().item()
        assert share >= HALF_AGREEMENT, f"{what} agrees in {share:.3f} of the decisions"


def check_masked_counts(case, counts):
    """As many codes stay masked as the schedule says. Variant M compares with the first that is
    unmasked, and unmasks all that tie with it; half precision, with its few steps to a power of
    two, has such ties."""
    planned = case.tensors["image_mask_len"].long()
    if case.variant == "A":
        assert torch.equal(counts, planned)
    else:
        assert (counts <= planned).all()
        assert (counts >= HALF_AGREEMENT * planned - 1).all()


def check_random_states(case, policies):
    states = {"global_rng_state_sha256": torch.get_rng_state()}
    if case.settings["gen"]:
        states["generator_state_sha256"] = policies.selection.generators[0].get_state()
    for name, state in states.items():
        assert hashlib.sha256(state.numpy().tobytes()).hexdigest() == case.content[name], name

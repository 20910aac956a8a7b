"""Every golden case of Lumina-DiMOO: `upstream` decides at each step what the reference decided.

As in test_sampler.py, fp32 cases run freely and must agree in every token, count and random draw;
in half precision each step is taken from the recorded state.
"""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, InputError, SamplerSettings, TokenState, denoise
from mmada_parallel.mmp_core.image.pictures import painting_mask, to_pixels
from mmada_parallel.mmp_core.sampler.loop import take_step
from mmada_parallel.mmp_core.sampler.ml_cache import MLCache
from mmada_parallel.mmp_core.sampler.predictor import Predictor
from mmada_parallel.mmp_core.sampler.upstream import upstream_policies
from mmada_parallel.mmp_core.state import Step
from mmada_parallel.mmp_core.variants.lumina_dimoo import edit_template
from mmada_parallel.tests.parity import golden
from mmada_parallel.tests.parity.test_sampler import (
    HALF_AGREEMENT,
    assert_probabilities,
    check_random_states,
)
from PIL import Image
from safetensors.torch import load_file

FILES = golden.case_files("d*.json", lumina_dimoo=True)
NEAR_TIES = 8
"""Codes of a picture that another processor may round to another row of the codebook."""
KEYS = {
    "variant",
    "family",
    "task",
    "case",
    "call",
    "strings",
    "layout",
    "image_steps",
    "refresh_steps",
    "model_calls",
    "seconds",
    "rng_log",
    "generator_state_sha256",
    "global_rng_state_sha256",
    "id",
    "split",
    "robust",
    "text",
    "returned",
    "raised",
    "torch",
    "transformers",
    "diffusers",
    "threads",
}
CASE_KEYS = {"task", "model", "dtype", "prompt", "seed", "gen", "temp", "cfg", "img_seed"}
CASE_KEYS_OF = {
    "t2i": {"hw", "timesteps", "cache", "cache_ratio", "refresh", "warmup"}
    | {"paint", "mask_h", "mask_w", "img_wh"},
    "i2i": {"edit_type", "in_hw", "ref_hw", "timesteps", "cfg_img", "ref_seed"},
    "mmu": {"in_hw", "T", "block", "S", "remasking", "prefill", "prefill_end"},
}
DRAWN = {"seq_len", "newline_every", "timesteps", "codebook_size", "text_vocab_size"}
CALL_KEYS = {"temperature", "cfg_scale", "code_start"}
CALL_KEYS_OF = {
    "t2i": DRAWN | {"use_cache", "cache_ratio", "refresh_interval", "warmup_ratio"},
    "i2i": DRAWN | {"cfg_img"},
    "mmu": {"steps", "gen_length", "block_length", "remasking"},
}
ROWS = {"cond_ids", "final_ids", "input_ids", "prompt_ids", "uncond_prompt_ids"}
IMAGE_TENSORS = ROWS | {
    f"image_{name}"
    for name in (
        *("mask_len", "masked_after", "masked_before", "masking", "positions", "sampled"),
        *("select_gumbel", "selected_probs", "step_index", "tokens", "unknown"),
    )
}
CACHED = {f"{b}_{name}" for b in ("cond", "uncond") for name in ("computed", "max_logit")}
TENSORS = {
    "t2i": IMAGE_TENSORS
    | CACHED
    | {"uncon_ids", "uncond_ids"}
    | {"cond_threshold"}
    | {"uncond_threshold"},
    "i2i": IMAGE_TENSORS | {"uncon_text", "uncon_image", "uncond_text_ids", "uncond_image_ids"},
    "mmu": ROWS
    | {"uncond_ids", "num_transfer"}
    | {
        f"text_{name}"
        for name in (
            *("block_index", "masked_after", "masked_before", "step_index", "tokens"),
            *("transfer", "x0", "x0_p"),
        )
    },
}
BRANCHES = {
    # Ids of each model call, and the prefix that was passed.
    "without text": {"t2i": ("uncond_ids", "uncon_ids"), "i2i": ("uncond_text_ids", "uncon_text")},
    "without image": {"i2i": ("uncond_image_ids", "uncon_image")},
    "masked": {"mmu": ("uncond_ids", None)},
}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_case(file, recipe_model):
    case = read(file)
    model = recipe_model(case.settings["model"], case.settings["dtype"], "lumina_dimoo")
    prompt = parse(case, model)
    settings = sampler_settings(case)
    if stops(case):
        with pytest.raises(InputError):
            upstream_policies(model, prompt, settings)
        return
    policies = policies_of(case, model, prompt, settings)
    draws = recorded_draws(policies.selection)
    torch.manual_seed(case.settings["seed"])
    if case.settings["dtype"] == "fp32":
        steps = denoise(model, prompt, settings, policies=policies).steps
    else:
        steps = replay(case, model, prompt, policies)
    steps = called(case, steps)
    check_ids(case, model, prompt, policies, steps)
    if case.task == "mmu":
        check_text(case, model, policies.plan, steps)
    else:
        check_image(case, policies.plan, steps, draws)
    if settings.reuses:
        check_cache(case, policies.cache)
    if case.settings["dtype"] == "fp32":
        last = model.layout.image_ids if case.task != "mmu" else model.layout.text_ids
        check_end(case, model, prompt, steps[-1].after if steps else prompt.initial, last)
    check_random_states(case, policies)


def read(file):
    """The case as a namespace; fails on anything these checks do not know."""
    content = json.loads(file.read_text())
    tensors = load_file(file.with_suffix(".safetensors"))
    task = content["task"]
    assert task in CASE_KEYS_OF, f"unknown task {task}"
    understood = {
        "entries": (content, KEYS),
        "case settings": (content["case"], CASE_KEYS | CASE_KEYS_OF[task]),
        "sampler arguments": (content["call"], CALL_KEYS | CALL_KEYS_OF[task]),
        "tensors": (tensors, TENSORS[task]),
    }
    golden.refuse_unknown(understood)
    return SimpleNamespace(
        task=task,
        settings=content["case"],
        call=content["call"],
        layout=content["layout"],
        content=content,
        tensors=golden.with_long_ids(tensors),
    )


def parse(case, model):
    """The prompt, checked to give back the reference's sequences."""
    layout, row, call = model.layout, case.tensors["input_ids"], case.call
    state, settings = initial_state(case, layout), case.settings
    pictures = [picture_codes(case, model, *which) for which in shown(settings, case.task)]
    image, reference = (*pictures, None, None)[:2]
    if case.task == "i2i":
        template = edit_template(settings["edit_type"], settings["prompt"])
        prompt = layout.encode_template(*template, image, reference, state)
    else:
        name = {"t2i": "generate", "mmu": "describe"}[case.task]
        prompt = layout.encode_task(name, settings["prompt"], image, reference, state)
    assert prompt.instruction[0].tolist() == case.tensors["prompt_ids"].tolist()
    strings = [prompt.instruction, prompt.unconditional][: len(case.content["strings"])]
    for string, ids in zip(case.content["strings"], strings, strict=True):
        assert model.tokenizer(string)["input_ids"] == ids[0].tolist()
    if case.task == "mmu":
        sequence = layout.released_text_input(prompt, state)
        assert sequence.text_positions[0] == call["code_start"] == case.layout["code_start"]
    else:
        sequence = layout.model_input(prompt, state)
        assert torch.equal(sequence.image_positions, case.tensors["image_positions"])
        assert sequence.image_positions[0] == call["code_start"]
        assert layout.image_offset == call["text_vocab_size"]
        assert layout.codebook_size == call["codebook_size"]
    assert torch.equal(sequence.ids[0], row)
    return prompt


def initial_state(case, layout):
    start, row = case.call["code_start"], case.tensors["input_ids"]
    if case.task == "mmu":
        text = row[start : start + case.call["gen_length"]][None]
        state = TokenState.masked(1, text.shape[1], (0, 0))
        return dataclasses.replace(state, text=text.where(text != layout.mask_id, MASKED))
    height, width = case.layout["grid_hw"]
    ids = row[start : start + height * (width + 1)].view(1, height, width + 1)[:, :, :-1]
    codes = torch.where(ids == layout.mask_id, MASKED, ids - layout.image_offset)
    check_painting(case, codes)
    return dataclasses.replace(TokenState.masked(1, 0, (height, width)), image=codes)


def check_painting(case, codes):
    mode, grid = case.settings.get("paint"), codes.shape[1:]
    painted = torch.ones(grid, dtype=torch.bool)
    if mode:
        width, height = case.settings["img_wh"]
        shares = case.settings["mask_h"], case.settings["mask_w"]
        painted = painting_mask(height, width, *grid, mode, *shares)
    assert torch.equal(codes[0] == MASKED, painted)


def shown(settings, task):
    """(seed, height and width in codes) of the input pictures."""
    if task == "t2i":
        return []
    pictures = [(settings["img_seed"], settings["in_hw"])]
    if settings.get("ref_hw"):
        pictures.append((settings["ref_seed"], settings["ref_hw"]))
    return pictures


def picture_codes(case, model, seed, grid):
    """(1, h, w): as the reference's row has them, which are as we encode them but for near ties."""
    height, width = grid
    pixels = to_pixels(Image.fromarray(golden.picture(seed, 16 * width, 16 * height)), (0.0, 1.0))
    encoded = model.image_tokenizer.encode(pixels).flatten()
    row, layout = case.tensors["input_ids"], model.layout
    start = len(case.tensors["prompt_ids"]) - 1
    if case.task == "i2i" and seed == case.settings["ref_seed"] and case.settings["ref_hw"]:
        before = case.settings["in_hw"]
        start += before[0] * (before[1] + 1) + 2
    assert row[start] == layout.boi
    ids = row[start + 1 :]
    ids = ids[ids != layout.newline][: height * width]
    lost = 0
    if case.task == "mmu":  # what the reference lost of the picture has no code
        kept = height * (width + 1) - 1
        ids = row[start + 1 : start + 1 + kept]
        ids = ids[ids != layout.newline]
        ids = ids[ids != layout.eoi]
        lost = height * width - len(ids)
    stored = torch.cat((ids - layout.image_offset, encoded[height * width - lost :]))
    assert (stored != encoded).sum() <= NEAR_TIES
    return stored.view(1, height, width)


def sampler_settings(case):
    call, own = case.call, {}
    if case.task == "mmu":
        own = {
            "text_steps": call["steps"],
            "block_length": call["block_length"],
            "text_temperature": call["temperature"],
            "reasoning_guidance": call["cfg_scale"],
            "remasking": call["remasking"],
        }
    else:
        own = {
            "image_steps": call["timesteps"],
            "image_temperature": call["temperature"],
            "text_guidance": call["cfg_scale"],
            "image_guidance": call.get("cfg_img", 0.0),
            "speed": "cached" if call.get("use_cache") else "exact",
        }
    seed = case.settings["seed"] if case.settings["gen"] else None
    return SamplerSettings.upstream("lumina_dimoo", **own, seed=seed)


def stops(case):
    """Whether the reference stopped where ours refuses. Its NameError after a block that holds the
    end of the text is where ours ends the answer."""
    raised = case.content["raised"]
    return raised is not None and raised["type"] != "NameError"


@dataclasses.dataclass(frozen=True)
class RecordingCache(MLCache):
    """Notes what each branch computed, and the largest logits it chose by."""

    computed: dict = dataclasses.field(default_factory=dict)
    largest: dict = dataclasses.field(default_factory=dict)

    def positions(self, branch, model_input, cache, ids, targets):
        if cache.hidden is not None:
            largest = self.peaks(cache.hidden[:, : ids.shape[1]])
            self.largest.setdefault(branch, []).append(largest)
        chosen = super().positions(branch, model_input, cache, ids, targets)
        row = torch.ones_like(ids, dtype=torch.bool)
        if chosen is not None:
            row = torch.zeros(1, ids.shape[1] + 1, dtype=torch.bool)
            row = row.scatter(1, chosen, True)[:, :-1]
        self.computed.setdefault(branch, []).append(row)
        return chosen


def policies_of(case, model, prompt, settings):
    """The preset's, with the case's settings of ML-Cache."""
    policies = upstream_policies(model, prompt, settings)
    if not isinstance(policies.cache, MLCache):
        return policies
    cache = RecordingCache(
        model.transformer,
        policies.cache.choices,
        policies.cache.steps,
        case.call["cache_ratio"],
        case.call["refresh_interval"],
        case.call["warmup_ratio"],
    )
    return dataclasses.replace(policies, cache=cache)


def recorded_draws(selection):
    """The Gumbel noise of each selection of image codes."""
    noise, gumbel = [], selection.gumbel

    def recorded(positions, *choices):
        drawn = gumbel(positions, *choices)
        if not choices:
            noise.append(positions.fill(drawn, torch.zeros(positions.tokens.shape).to(drawn)))
        return drawn

    selection.gumbel = recorded
    return noise


def replay(case, model, prompt, policies):
    """Each step from the state that the reference was in."""
    predictor = Predictor(
        model.transformer, model.layout, policies.guidance.branches, policies.cache
    )
    template = next(iter(policies.guidance.branches.values()))
    last, steps = Step.before(prompt.initial), []
    for index, ids in enumerate(case.tensors["cond_ids"]):
        text, codes = ids[template.text_positions], ids[template.image_positions]
        text = text.where(text != model.layout.mask_id, MASKED)[None]
        codes = torch.where(
            codes == model.layout.mask_id, MASKED, codes - model.layout.image_offset
        )
        state = TokenState(text, codes.view(1, *prompt.initial.grid))
        with torch.no_grad():
            last = take_step(predictor, policies, index, dataclasses.replace(last, after=state))
        steps.append(last)
    return steps


def called(case, steps):
    """The steps at which the reference called the model; at ours after these nothing happens."""
    calls = len(case.tensors["cond_ids"])
    for step in steps[calls:]:
        assert not step.text_revealed.any()
        assert not step.image_revealed.any()
    return steps[:calls]


def check_ids(case, model, prompt, policies, steps):
    """The ids of every model call, in all branches."""
    branches = policies.guidance.branches
    predictor = Predictor(model.transformer, model.layout, branches)
    for branch, ids in [("conditional", "cond_ids")] + [
        (branch, tasks[case.task][0]) for branch, tasks in BRANCHES.items() if case.task in tasks
    ]:
        if len(case.tensors.get(ids, ())):
            ours = torch.cat([predictor.ids(branch, step.state) for step in steps])
            assert torch.equal(ours, case.tensors[ids]), branch
    for branch, tasks in BRANCHES.items():
        prefix = case.tensors.get(tasks.get(case.task, (None, None))[1])
        if prefix is not None:
            assert torch.equal(branches[branch].ids[0, : len(prefix)], prefix)
            lead = branches[branch].image_positions[0] - len(prefix)
            assert lead == 2  # <answer> and boi


def check_agreement(case, decisions):
    """``decisions``: of each kind, ours and the reference's at each step. In half precision they
    agree but for what rounding turns."""
    for what, steps in decisions.items():
        same = [ours == expected for ours, expected in steps]
        if case.settings["dtype"] == "fp32":
            wrong = [i for i, step in enumerate(same) if not step.all()]
            assert not wrong, f"{what} at steps {wrong}"
        else:
            assert torch.cat(same).float().mean() >= HALF_AGREEMENT, what


def check_image(case, plan, steps, draws):
    tensors, guidance = case.tensors, (case.call["cfg_scale"], case.call.get("cfg_img", 0.0))
    assert list(range(len(steps))) == case.content["image_steps"]
    assert [step.index for step in steps] == tensors["image_step_index"].tolist()
    planned = [plan.steps[step.index].image_masked_after[0] for step in steps]
    assert planned == tensors["image_mask_len"].tolist()
    assert len(draws) == len(steps)
    decisions = {"image": [], "image masks": []}
    for i, step in enumerate(steps):
        unknown = tensors["image_unknown"][i]
        assert torch.equal(step.state.image.flatten() == MASKED, unknown)
        assert unknown.sum() == tensors["image_masked_before"][i]
        masking = step.after.image.flatten() == MASKED
        decisions["image"].append((step.guess.image.flatten(), tensors["image_sampled"][i]))
        decisions["image masks"].append((masking, tensors["image_masking"][i]))
        torch.testing.assert_close(draws[i][0].float(), tensors["image_select_gumbel"][i].float())
        if case.settings["dtype"] == "fp32":
            assert masking.sum() == tensors["image_masked_after"][i]
            confidence = step.image_confidence.flatten()[unknown]
            expected = tensors["image_selected_probs"][i][unknown]
            assert_probabilities(confidence, expected, *guidance)
    check_agreement(case, decisions)


def check_text(case, model, plan, steps):
    tensors, block = case.tensors, case.call["block_length"]
    assert [step.index for step in steps] == tensors["text_step_index"].tolist()
    quotas = [plan.steps[step.index].text_quota[0] for step in steps]
    assert quotas == tensors["num_transfer"].flatten().tolist()[: len(quotas)]
    blocks = [plan.steps[step.index].text_until // block - 1 for step in steps]
    assert blocks == tensors["text_block_index"].tolist()
    decisions = {"text": [], "text revealed": []}
    for i, step in enumerate(steps):
        masked = step.state.text[0] == MASKED
        reached = masked & (tensors["text_x0_p"][i] > -torch.inf)
        assert masked.sum() == tensors["text_masked_before"][i]
        guess = model.layout.text_ids(step.guess.text[0][reached])
        decisions["text"].append((guess, tensors["text_x0"][i][reached]))
        decisions["text revealed"].append((step.text_revealed[0], tensors["text_transfer"][i]))
        if case.settings["dtype"] == "fp32":
            assert (step.after.text == MASKED).sum() == tensors["text_masked_after"][i]
            confidence = tensors["text_x0_p"][i][reached]
            assert_probabilities(
                step.text_confidence[0][reached], confidence, case.call["cfg_scale"]
            )
    check_agreement(case, decisions)


def check_cache(case, cache):
    for branch, name in (("conditional", "cond"), ("without text", "uncond")):
        computed = torch.cat(cache.computed[branch])
        assert torch.equal(computed, case.tensors[f"{name}_computed"])
        full = [i for i, row in enumerate(computed) if row.all()]
        assert set(case.content["refresh_steps"]) <= set(full)
        largest = torch.cat(cache.largest[branch])
        expected = case.tensors[f"{name}_max_logit"][: len(largest)].float()
        torch.testing.assert_close(largest, expected, rtol=1e-4, atol=1e-4)
        thresholds = case.tensors[f"{name}_threshold"]
        for step, threshold in enumerate(thresholds.tolist()):
            if threshold == threshold:
                quantile = torch.quantile(largest[step - 1], 1 - cache.reused)
                assert quantile.item() == pytest.approx(threshold, rel=1e-4)


def check_end(case, model, prompt, state, to_ids):
    final = case.tensors["final_ids"]
    if case.task == "mmu":
        ids = model.layout.released_text_input(prompt, state).ids[0]
        assert torch.equal(to_ids(state.text)[0], case.tensors["text_tokens"])
        assert model.layout.decode_text(state.text) == [case.content["text"]]
    else:
        ids = model.layout.model_input(prompt, state).ids[0]
        assert torch.equal(state.image.flatten(), case.tensors["image_tokens"])
    assert torch.equal(ids, final)

"""Variations of a result, and negative instructions: what a second run moves away from."""

import pytest
import torch
from mmada_parallel.mmp_core import (
    MASKED,
    InputError,
    Prompt,
    SamplerSettings,
    TokenState,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.memory import denoising_estimate
from mmada_parallel.mmp_core.variation import (
    Confidence,
    confidence_in,
    predicted_confidence,
    varied,
)
from PIL import Image

QUICK = SamplerSettings(text_steps=8, image_steps=8, seed=3)
WORDS = "draw a red star on white"


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo", dtype=torch.float32)


@pytest.fixture(scope="module")
def run(demo):
    return denoise(demo, encode_instruction(demo, WORDS, batch=2), QUICK)


def state_of(text, image):
    return TokenState(torch.tensor([text]), torch.tensor([image]))


def test_the_least_sure_are_masked_first_in_text_and_image_apart():
    state = state_of([5, 6, 7, 9, 9], [[1, 2], [3, MASKED]])
    sure = Confidence(
        torch.tensor([[0.9, 0.1, 0.5, 0.0, 0.0]]), torch.tensor([[[0.3, 0.2], [0.9, 0.0]]])
    )

    def of(**shares):
        changed = varied(state, sure, end_of_text=9, **shares)
        return changed.text[0].tolist(), changed.image[0].flatten().tolist()

    assert of() == ([5, 6, 7, 9, 9], [1, 2, 3, MASKED])
    assert of(image=0.4) == ([5, 6, 7, 9, 9], [MASKED, MASKED, 3, MASKED])  # 2 of the 3, rounded up
    assert of(text=0.34) == ([5, MASKED, MASKED, 9, 9], [1, 2, 3, MASKED])
    assert of(text=1.0, image=1.0) == ([MASKED] * 5, [MASKED] * 4)
    with pytest.raises(InputError, match="share of the image is 1.5; expected 0 to 1"):
        of(image=1.5)
    with pytest.raises(InputError, match="trajectory is of other tokens"):
        varied(state, Confidence(sure.text[:, :2], sure.image))


def test_confidence_is_that_at_which_tokens_were_unmasked(run):
    confidence = confidence_in(run)
    for step in run:
        revealed = step.image_revealed
        assert torch.equal(confidence.image[revealed], step.image_confidence[revealed])
        assert torch.equal(
            confidence.text[step.text_revealed], step.text_confidence[step.text_revealed]
        )
    assert ((confidence.text > 0) & (confidence.text <= 1)).all()


def test_a_variation_keeps_what_is_not_masked_and_draws_the_rest(demo, run):
    changed = varied(run.final, confidence_in(run), image=0.5)
    masked = changed.image == MASKED
    assert masked.sum(dim=(1, 2)).tolist() == [8, 8] and torch.equal(changed.text, run.final.text)
    prompt = encode_instruction(demo, WORDS, batch=2).starting_from(changed)
    again = denoise(demo, prompt, SamplerSettings(text_steps=8, image_steps=8, seed=70)).final
    assert torch.equal(again.image[~masked], run.final.image[~masked])
    assert not (again.image == MASKED).any()


def test_one_forward_tells_how_far_the_prompt_decides_each_token(demo, run):
    prompt = encode_instruction(demo, WORDS, batch=2)
    confidence = predicted_confidence(demo, prompt, run.final)
    assert confidence.image.shape == run.final.image.shape
    other = torch.where(run.final.image == 0, 1, 0)
    wrong = predicted_confidence(demo, prompt, TokenState(run.final.text, other))
    assert confidence.image.mean() > wrong.image.mean() + 0.2
    blank = predicted_confidence(demo, prompt, prompt.initial)
    assert not blank.image.any() and not blank.text.any()


@pytest.mark.parametrize("name", ["demo", "demo-lumina"])
def test_a_negative_instruction_stands_in_the_branches_without_one(name):
    model = load_checkpoint(name, dtype=torch.float32)
    plain = encode_instruction(model, WORDS)
    against = encode_instruction(model, WORDS, negative="draw a blue circle on green")
    alike = encode_instruction(model, "draw a blue circle on green")
    assert torch.equal(against.instruction, plain.instruction)
    inputs = [
        model.layout.model_input(prompt, prompt.initial, drop_text=drop).ids
        for prompt, drop in ((against, True), (alike, False), (against, False), (plain, False))
    ]
    assert torch.equal(inputs[0], inputs[1]) and torch.equal(inputs[2], inputs[3])
    settings = SamplerSettings.of_profile("quick look", model.variant, plain.task, seed=1)
    runs = [denoise(model, prompt, settings) for prompt in (plain, against)]
    first, second = (torch.stack([step.image_confidence for step in run]) for run in runs)
    assert not torch.allclose(first, second)
    with pytest.raises(InputError, match="upstream preset has no negative instruction"):
        denoise(model, against, SamplerSettings.upstream(model.variant, task=plain.task))


def test_what_takes_no_negative_instruction_says_so(demo):
    model = load_checkpoint("demo-lumina", dtype=torch.float32)
    image = Image.new("RGB", (128, 128))
    with pytest.raises(InputError, match="does not read an instruction for the task 'style'"):
        encode_instruction(model, "", image, reference=image, task="style", negative=WORDS)
    long = encode_instruction(demo, "draw a star", negative=" ".join([WORDS] * 3))
    short = encode_instruction(demo, "draw a star")
    estimates = [denoising_estimate(demo, prompt, QUICK).total(1) for prompt in (long, short)]
    assert estimates[0] > estimates[1]
    with pytest.raises(ValueError, match="with and without a negative instruction"):
        Prompt.stack([long, short])
    assert long.without_instruction().negative is None

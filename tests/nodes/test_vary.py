"""Variations of a result, lists of instructions, and what is said of a negative one."""

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, InputError
from mmada_parallel.mmp_core.memory import OutOfMemory


def given(model, prompt, tokens, **changes):
    return {
        "model": model,
        "prompt": prompt,
        "tokens": tokens,
        "picture": 0.5,
        "text": 0.0,
        **changes,
    }


@pytest.mark.parametrize("with_steps", [True, False], ids=["trajectory", "one forward"])
def test_a_share_is_masked_again_and_said(run_node, model, encoded, denoised, with_steps):
    prompt = encoded(text_length=6)
    tokens, trajectory = denoised(prompt, batch_size=2, text_steps=2, image_steps=4).result
    more = {"trajectory": trajectory} if with_steps else {}
    output = run_node("Vary", **given(model, prompt, tokens, **more))
    changed = output[0]
    assert (changed.image == MASKED).sum(dim=(1, 2)).tolist() == [8, 8]
    assert torch.equal(changed.text, tokens.text)
    assert "16 of 32 image tokens, 0 of 12 text tokens" in output.ui["text"][0]
    again, _ = denoised(prompt, tokens=changed, seed=9, text_steps=2, image_steps=4).result
    kept = changed.image != MASKED
    assert torch.equal(again.image[kept], tokens.image[kept]) and (again.image != MASKED).all()


def test_a_result_that_a_cpu_has_no_memory_to_ask_about_is_refused(
    run_node, model, encoded, denoised, monkeypatch
):
    import comfy.model_management as management

    prompt = encoded()
    tokens, _ = denoised(prompt).result
    monkeypatch.setattr(management, "get_free_memory", lambda device: 10_000)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 0)
    monkeypatch.setattr(model.model.transformer, "forward", lambda *_, **__: pytest.fail("began"))
    with pytest.raises(OutOfMemory, match="Too little memory: 1 result of"):
        run_node("Vary", **given(model, prompt, tokens))


def test_a_trajectory_of_another_run_is_refused(run_node, model, encoded, denoised):
    prompt = encoded(text_length=6)
    tokens, _ = denoised(prompt, text_steps=1, image_steps=1).result
    _, other = denoised(encoded(text_length=4), text_steps=1, image_steps=1).result
    with pytest.raises(InputError, match="connect both of one run"):
        run_node("Vary", **given(model, prompt, tokens, trajectory=other))


def test_each_line_is_an_instruction(run_node):
    assert run_node("Instructions", instructions=" a \n\nb c\n")[0] == ["a", "b c"]
    with pytest.raises(InputError, match="one on each line"):
        run_node("Instructions", instructions="\n ")


def test_a_negative_instruction_without_guidance_is_said_to_be_unused(run_node, model, denoised):
    widgets = dict(width=0, height=0, text_length=6, instruction="remove the red star")
    prompt = run_node("EncodeInstruction", model=model, negative="a blue circle", **widgets)[0]
    assert prompt.negative is not None

    def used(**changes):
        (((run,),),) = denoised(prompt, text_steps=1, image_steps=1, **changes).ui.values()
        return run["used"]

    assert "not used" not in used() and "not used, since guidance is off" in used(
        joint_guidance=0.0
    )

"""Lumina-DiMOO beside its golden cases: which checkpoint is one, its tasks, texts in blocks."""

import json
import logging

import pytest
import torch
from mmada_parallel.mmp_core import (
    MASKED,
    CheckpointError,
    InputError,
    SamplerSettings,
    TokenState,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.mmp_core.checkpoint.convert import convert
from mmada_parallel.mmp_core.checkpoint.inspect import inspect_checkpoint
from mmada_parallel.mmp_core.sampler.schedule import corrected_steps
from mmada_parallel.mmp_core.state import Prompt
from mmada_parallel.mmp_core.variants import strangers
from mmada_parallel.mmp_core.variants.lumina_dimoo import understood_size
from mmada_parallel.mmp_core.variants.registry import variant_named
from mmada_parallel.tests.mmp_core import tiny
from PIL import Image

PICTURE = Image.linear_gradient("L").resize((24, 16)).convert("RGB")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_checkpoint(tiny.write_checkpoint(tmp_path_factory.mktemp("d") / "toy", "D"))


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that nothing but its name tells from variant A's."""
    return tiny.write_checkpoint(tmp_path / "mine", "A")


def edit_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def nameless(folder):
    content = json.loads((folder / "config.json").read_text())
    del content["default_text_length"], content["default_image_size"]
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", ["Lumina-DiMOO", "models--Alpha-VLLM--Lumina-DiMOO/snapshots/a"])
def test_a_name_says_which_it_is(tmp_path, name):
    place = nameless(tiny.write_checkpoint(tmp_path / name, "A"))
    assert load_checkpoint(place).variant.name == "Lumina-DiMOO"
    assert inspect_checkpoint(place).family_known == "by its name"
    place = place.rename(place.with_name("mine"))
    edit_config(place, _name_or_path="Alpha-VLLM/Lumina-DiMOO")
    assert load_checkpoint(place).variant.id == "D"


def test_what_nothing_tells_is_assumed_and_said(folder):
    report = inspect_checkpoint(nameless(folder))
    assert (report.family_id, report.family_known) == ("A", "assumed")
    assert "if it is Lumina-DiMOO, choose it as family" in report.odd[0]


@pytest.mark.parametrize("said", ["D", "lumina_dimoo", "Lumina-DiMOO"])
def test_the_user_says_which_it_is(folder, said):
    assert load_checkpoint(folder, family=said).variant is variant_named("D")


def test_a_wrong_choice_is_told(folder, tmp_path, caplog):
    parallel = nameless(folder).rename(tmp_path / "MMaDA-Parallel-A")
    assert load_checkpoint(parallel, family="D").variant.id == "D"
    assert "loaded as Lumina-DiMOO" in caplog.text
    assert "by its folder (MMaDA-Parallel-A) it is MMaDA-Parallel" in caplog.text
    lumina = parallel.rename(tmp_path / "Lumina-DiMOO")
    odd = inspect_checkpoint(lumina, family="A").odd
    assert any("(Lumina-DiMOO) it is Lumina-DiMOO" in sentence for sentence in odd)
    assert not inspect_checkpoint(lumina, family="D").odd
    other = tiny.write_checkpoint(tmp_path / "m", "M")
    with pytest.raises(CheckpointError, match="not a checkpoint of Lumina-DiMOO"):
        load_checkpoint(other, family="lumina_dimoo")


def test_what_the_user_said_is_remembered_beside_the_checkpoint(folder):
    strangers.remember(nameless(folder), variant_named("D"))
    assert load_checkpoint(folder).variant.id == "D"
    assert inspect_checkpoint(folder).family_known == "as you once chose"
    assert load_checkpoint(folder, family="A").variant.id == "A"
    (folder / strangers.NOTE).write_text("[]")
    with pytest.raises(CheckpointError, match="mmada_parallel.json is not a JSON object"):
        load_checkpoint(folder)
    (folder / strangers.NOTE).unlink()
    folder.chmod(0o500)
    try:
        strangers.remember(folder, variant_named("D"))  # a folder of somebody else
    finally:
        folder.chmod(0o700)


def test_one_file_holds_the_family(folder, tmp_path):
    convert(nameless(folder), tmp_path / "one.safetensors", family="lumina_dimoo")
    assert load_checkpoint(tmp_path / "one.safetensors").variant.id == "D"
    odd = inspect_checkpoint(tmp_path / "one.safetensors", family="A").odd
    assert any("its header says D" in sentence for sentence in odd)


def test_logs_say_how_the_family_is_known(folder, caplog):
    caplog.set_level(logging.INFO)
    load_checkpoint(folder, family="D")
    assert "family: Lumina-DiMOO (chosen by you)" in caplog.text


IMAGE_TASKS = {
    "edit": "make it red",
    "subject": "a red circle",
    "control": "a blue square",
    "dense_prediction": "depth map",
    "multi_view": "left",
}


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_tasks_that_draw_from_a_picture(model, task):
    prompt = encode_instruction(model, IMAGE_TASKS[task], PICTURE, task=task)
    assert prompt.task == task and prompt.initial.text.shape == (1, 0)
    assert prompt.initial.grid == prompt.image.shape[1:]
    final = denoise(model, prompt, SamplerSettings(image_steps=3, text_guidance=1.0)).final
    assert not (final.image == MASKED).any()
    assert decode_text(model, final) == [""]


def test_without_a_word_the_pictures_say_the_task(model):
    assert encode_instruction(model, "red").task == "generate"
    assert encode_instruction(model, "red", PICTURE).task == "edit"
    assert encode_instruction(model, "red", PICTURE, size=(0, 0)).task == "describe"
    style = encode_instruction(model, "", PICTURE, reference=PICTURE.rotate(90, expand=True))
    assert style.task == "style"
    segments = model.layout.prefix(style)[0]
    assert (segments == model.layout.boi).sum() == 2
    both = Prompt.stack([style, style])
    assert both.reference.shape[0] == 2 and both.task == "style"


def test_a_text_is_the_answer_to_a_question(model):
    prompt = encode_instruction(model, "make the circle red", PICTURE, task="describe")
    assert prompt.initial.text.shape == (1, 5) and prompt.initial.image.shape == (1, 0, 0)
    ids = model.layout.model_input(prompt, prompt.initial).ids[0]
    assert ids[-1] == model.layout.answer_end and ids[-7] == model.layout.answer
    final = denoise(model, prompt, SamplerSettings(text_steps=5)).final
    assert not (final.text == MASKED).any()
    assert not (final.text == model.layout.mask_id).any()
    assert decode_image(model, final)[0].size == (0, 0)


@pytest.mark.parametrize(
    "task, options, message",
    [
        ("draw", {}, "was not trained on the task 'draw'; it knows generate, edit, subject"),
        ("edit", {}, "'edit' takes one picture, and 0 was given"),
        ("style", {"image": PICTURE}, "'style' takes two pictures, and 1 was given"),
        ("dense prediction", {"image": PICTURE}, "expected the map to draw: canny edge map"),
        ("multi-view", {"image": PICTURE}, "expected one word for the view"),
        ("paint", {"image": PICTURE}, "'paint' needs a mask"),
        ("edit", {"image": PICTURE, "text_length": 4}, "answers with image or text, not with text"),
        (None, {"size": (0, 0)}, "no task that takes no picture and is answered with text"),
        (None, {"reference": PICTURE}, "A second picture needs a first"),
    ],
)
def test_other_tasks_are_refused_by_name(model, task, options, message):
    with pytest.raises(InputError, match=message):
        encode_instruction(model, "make it red", task=task, **options)


def test_other_families_know_their_own_tasks(folder):
    model = load_checkpoint(folder)
    assert encode_instruction(model, "make it red", task="generate").task == ""
    with pytest.raises(InputError, match="MMaDA-Parallel-A was not trained on the task 'describe'"):
        encode_instruction(model, "make it red", PICTURE, task="describe")


def test_inpainting_keeps_the_picture_in_the_answer_alone(model):
    mask = Image.new("L", PICTURE.size)
    mask.paste(255, (0, 0, 8, 16))
    prompt = encode_instruction(model, "a red circle", PICTURE, task="paint", mask=mask)
    assert prompt.image is None and (prompt.initial.image != MASKED).any()
    with_source = encode_instruction(model, "a red circle", PICTURE, mask=mask)
    assert torch.equal(with_source.initial.image, prompt.initial.image)


def test_sizes_at_which_pictures_are_described():
    for size, expected in (
        ((80, 96), (448, 544)),  # enlarged to an area of 512 squared
        ((700, 701), (688, 688)),
        ((3000, 1500), (1408, 704)),
    ):
        assert understood_size(size, 1024, 16) == expected
    assert understood_size((64, 64), 64, 8) == (64, 64)


def test_blocks_are_unmasked_one_after_the_other():
    settings = SamplerSettings(text_steps=6, image_steps=1, block_length=4)
    steps = corrected_steps((7, 10), (0, 0), settings, [(4, 4), (0, 4), (3, 2)])
    assert [step.text_until for step in steps] == [4, 4, 8, 8, 12, 12]
    assert [step.text_masked_after for step in steps] == [
        *((5, 8), (3, 6), (3, 4), (3, 2)),
        *((1, 1), (0, 0)),
    ]
    assert [step.text_predicted for step in steps][:3] == [(4, 4), (2, 2), (0, 4)]
    few = SamplerSettings(text_steps=2, image_steps=1, block_length=4)
    steps = corrected_steps((12,), (0,), few, [(4,), (4,), (4,)])
    assert [(step.text_until, step.text_masked_after) for step in steps] == [(8, (4,)), (12, (0,))]


@pytest.mark.parametrize("speed", ["exact", "cached", "fast", "fastest"])
def test_a_text_that_ends_in_a_block_has_no_further_ones(model, speed, monkeypatch):
    prompt = encode_instruction(
        model, "make it red", PICTURE, task="describe", text_length=9, batch=3
    )
    settings = SamplerSettings(
        text_steps=9, block_length=3, text_temperature=1.0, seed=[1, 2, 3], speed=speed
    )
    whole = denoise(model, prompt, settings).final.text
    ends = model.layout.ends[0], int(whole[1, 1])
    monkeypatch.setattr(model.layout, "ends", ends)
    steps = denoise(model, prompt, settings).steps
    alone = denoise(model, prompt[1:2], SamplerSettings(**vars(settings) | {"seed": 2})).final
    final = steps[-1].after.text
    assert torch.equal(final[1, :3], whole[1, :3])
    assert (final[1, 3:] == ends[0]).all()
    assert torch.equal(alone.text[0], final[1])
    for step in steps:
        begun = (step.text_revealed & (step.after.text != ends[0]))[:, 3:].any(dim=1)
        assert not (step.after.text[begun, :3] == MASKED).any()


def test_the_mask_is_never_chosen(model):
    prompt = encode_instruction(model, "make it red", PICTURE, task="describe", text_length=8)
    transformer, mask_id = model.transformer, model.layout.mask_id
    weight = transformer.layers["ff_out"].weight
    before = weight[mask_id].clone()
    weight.data[mask_id] = 100 * weight.data.abs().sum(dim=0)
    try:
        final = denoise(model, prompt, SamplerSettings(text_steps=8)).final
    finally:
        weight.data[mask_id] = before
    assert not torch.isin(final.text, torch.tensor([MASKED, mask_id])).any()


def test_the_authors_settings_are_a_task_s(model):
    describe = SamplerSettings.upstream("lumina_dimoo", task="describe")
    assert (describe.text_steps, describe.block_length) == (128, 256)
    edit = SamplerSettings.upstream("D", task="edit")
    assert (edit.image_steps, edit.text_guidance, edit.image_guidance) == (64, 2.5, 4.0)
    with pytest.raises(InputError, match="block_length must be 0 with the upstream preset"):
        both = TokenState.masked(1, 4, (2, 2))
        a = tiny.TinyModel("A")
        prompt = a.layout.encode("make it red", None, both)
        denoise(a, prompt, SamplerSettings.upstream("A", block_length=2))


@pytest.mark.parametrize("task", ["generate", "edit", "describe"])
def test_ml_cache_goes_with_every_task(model, task):
    options = {} if task == "generate" else {"image": PICTURE}
    prompt = encode_instruction(model, "make it red", task=task, **options)
    settings = SamplerSettings.upstream(
        "D", task=task, image_steps=12, text_steps=5, speed="cached", block_length=0, seed=3
    )
    calls = []
    forward = model.transformer.forward
    model.transformer.forward = lambda ids, **more: calls.append(more) or forward(ids, **more)
    try:
        final = denoise(model, prompt, settings).final
    finally:
        del model.transformer.forward
    assert any(call.get("positions") is not None for call in calls)
    assert not (final.image == MASKED).any()

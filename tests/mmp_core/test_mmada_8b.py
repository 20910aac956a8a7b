"""MMaDA-8B beside its parity cases: which checkpoint is one, its tasks, what it refuses."""

import json

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
from mmada_parallel.mmp_core.variants import strangers
from mmada_parallel.mmp_core.variants.registry import variant_named
from mmada_parallel.tests.mmp_core import tiny
from PIL import Image

PICTURE = Image.linear_gradient("L").resize((150, 96)).convert("RGB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As released: nothing but its name tells it from variant M's."""
    place = tiny.write_checkpoint(tmp_path_factory.mktemp("8b") / "mine", "8B")
    content = json.loads((place / "config.json").read_text())
    del content["mmada_parallel_family"], content["default_text_length"]
    (place / "config.json").write_text(json.dumps(content))
    return place


@pytest.fixture(scope="module")
def model(folder):
    return load_checkpoint(folder, family="mmada-8b")


@pytest.mark.parametrize("said", ["8B", "MMaDA-8B", "mmada_8b"])
def test_the_user_says_which_it_is(said):
    assert variant_named(said).id == "8B"


@pytest.mark.parametrize("name", ["MMaDA-8B-MixCoT", "models--Gen-Verse--MMaDA-8B-Base"])
def test_a_name_says_which_it_is(folder, tmp_path, name):
    place = tmp_path / name / ("snapshots/a" if name.startswith("models") else "")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder)
    assert load_checkpoint(place).variant.id == "8B"
    assert inspect_checkpoint(place).family_known == "by its name"
    odd = inspect_checkpoint(place, family="M").odd
    assert any("loaded as MMaDA-Parallel-M, as you chose" in sentence for sentence in odd)


def test_what_nothing_tells_is_said_and_remembered(folder, tmp_path):
    report = inspect_checkpoint(folder)
    assert (report.family_id, report.family_known) == ("M", "assumed")
    assert "if it is MMaDA-8B, choose it as family" in report.odd[0]
    convert(folder, tmp_path / "one.safetensors", family="mmada-8b")
    assert load_checkpoint(tmp_path / "one.safetensors").variant.id == "8B"
    strangers.remember(folder, variant_named("8B"))
    assert load_checkpoint(folder).variant.id == "8B"
    (folder / strangers.NOTE).unlink()


def test_weights_of_other_families_are_refused(tmp_path):
    for other in "AD":
        with pytest.raises(CheckpointError, match="is not a checkpoint of MMaDA-8B"):
            load_checkpoint(tiny.write_checkpoint(tmp_path / other, other), family="8B")
    with pytest.raises(CheckpointError, match="describe_tag is 126089, the embedding has"):
        load_checkpoint(tiny.write_checkpoint(tmp_path / "M", "M"), family="8B")


@pytest.mark.parametrize("task", ["describe", "answer"])
@pytest.mark.parametrize("preset", ["corrected", "upstream"])
def test_texts(model, task, preset):
    picture = PICTURE if task == "describe" else None
    prompt = encode_instruction(model, "red", picture, task=task, text_length=8, batch=2)
    assert prompt.initial.grid == (0, 0)
    settings = SamplerSettings(
        text_steps=4, block_length=4, preset=preset, joint_guidance=0, reasoning_guidance=1.0
    )
    final = denoise(model, prompt, settings).final
    assert not (final.text == MASKED).any() or preset == "upstream"
    assert len(decode_text(model, final)) == 2
    assert decode_image(model, final)[0].size == (0, 0)


def test_a_text_that_has_ended_gets_no_further_blocks(model):
    layout = model.layout
    prompt = encode_instruction(model, "red", task="answer", text_length=12)
    text = prompt.initial.text.clone()
    text[0, 1] = layout.turn_end
    prompt = prompt.starting_from(TokenState(text, prompt.initial.image))
    final = denoise(model, prompt, SamplerSettings(text_steps=12, block_length=4)).final
    assert final.text[0, 4:].tolist() == [layout.eos] * 8


def test_pictures(model):
    prompt = encode_instruction(model, "a red circle")
    assert prompt.task == "generate" and prompt.initial.text.shape == (1, 0)
    final = denoise(model, prompt).final  # with the settings of its task
    assert not (final.image == MASKED).any()
    assert decode_image(model, final)[0].size == (64, 64)


def test_a_masked_part_is_drawn_anew(model):
    mask = Image.new("L", PICTURE.size)
    mask.paste(255, (60, 30, 90, 60))
    prompt = encode_instruction(model, "a red circle", PICTURE, mask=mask)
    assert prompt.task == "paint" and prompt.image is None
    known = prompt.initial.image != MASKED
    assert known.any() and not known.all()
    for preset in ("corrected", "upstream"):
        final = denoise(model, prompt, SamplerSettings(image_steps=3, preset=preset)).final
        assert torch.equal(final.image[known], prompt.initial.image[known])
    with pytest.raises(InputError, match="does not edit a whole picture: give a mask"):
        encode_instruction(model, "make it red", PICTURE)


def test_where_the_seen_part_lies(model):
    prompt = encode_instruction(model, "red", PICTURE, task="describe")
    assert prompt.image.shape == (1, 4, 4)
    placement = model.variant.placement((150, 96), (64, 64))
    assert placement.size == (64, 64)
    assert placement.box == pytest.approx((27, 0, 123, 96))
    strip = Image.new("RGB", (1, 40_000))
    assert model.variant.fit(strip, (512, 512)).size == (512, 512)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "edit", "image": PICTURE}, "not trained on the task 'edit'; it knows generate"),
        ({"task": "describe"}, "The task 'describe' takes one picture, and 0 was given"),
        ({"task": "answer", "image": PICTURE}, "takes no picture, and 1 was given"),
        ({"image": PICTURE, "reference": PICTURE}, "no task that takes two pictures"),
        ({"size": (70, 64)}, "the nearest that is: 64x64"),
        ({"size": (8192, 8192)}, "above 4096 pixels"),
        ({"text_length": 8}, "answers with image or text, not with text and image"),
        ({"task": "answer", "text_length": 0}, "not with nothing"),
        ({"task": "answer", "text_length": 9999}, "text_length is 9999; expected 0 to 4096"),
        ({"instruction": "red " * 600}, "has 600 tokens; MMaDA-8B reads at most 510"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_what_is_refused(model, arguments, message):
    with pytest.raises(InputError, match=message):
        encode_instruction(model, **{"instruction": "red"} | arguments)


def test_settings_at_which_the_reference_stops(model):
    prompt = encode_instruction(model, "red", task="answer", text_length=10)
    for own, message in (
        ({"block_length": 4}, "stop the reference"),
        ({"text_guidance": 1.0}, "text_guidance must be 0 with the upstream preset on variant 8B"),
        ({"speed": "cached"}, "whose reference knows only 'exact'"),
    ):
        with pytest.raises(InputError, match=message):
            denoise(model, prompt, SamplerSettings.upstream("8B", task="answer", **own))


def test_both_in_one_sequence_are_refused(model):
    prompt = model.layout.encode("red", None, TokenState.masked(1, 2, (2, 2)))
    with pytest.raises(InputError, match="not with both in one sequence"):
        model.layout.model_input(prompt, prompt.initial)


def test_settings_of_its_scripts():
    drawn = SamplerSettings.upstream("MMaDA-8B", task="generate")
    assert (drawn.image_steps, drawn.joint_guidance, drawn.seed) == (15, 3.5, 0)
    read = SamplerSettings.upstream("MMaDA-8B", task="describe")
    assert (read.text_steps, read.block_length, read.text_temperature) == (256, 128, 0.0)

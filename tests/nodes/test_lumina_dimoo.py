"""Lumina-DiMOO in the nodes: which family is loaded, tasks, answers with a picture or a text."""

import json
import shutil
from functools import partial

import pytest
import torch
from mmada_parallel.mmp_core import CheckpointError, InputError, TokenState
from mmada_parallel.mmp_core.variants.strangers import NOTE
from mmada_parallel.tests.nodes.untrained import write_untrained


@pytest.fixture(scope="module")
def family_folder(model_folder):
    """A checkpoint of which nothing tells whether it is Lumina-DiMOO."""
    folder = write_untrained(model_folder / "unnamed")
    config = json.loads((folder / "config.json").read_text())
    del config["default_text_length"]
    (folder / "config.json").write_text(json.dumps({**config, "default_image_size": 128}))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def lumina(run_node, family_folder):
    return run_node("Loader", **choices(family="Lumina-DiMOO"))[0]


def choices(**changes):
    return {"checkpoint": "unnamed", "dtype": "auto", "image_tokenizer": "auto", **changes}


@pytest.fixture
def encode(run_node, lumina):
    def encode(**changes):
        given = {"instruction": "red", "width": 0, "height": 0, "text_length": 0}
        return run_node("EncodeInstruction", model=lumina, **{**given, **changes})[0]

    return encode


def test_the_choice_of_a_family_is_remembered(run_node, lumina, family_folder):
    assert lumina.model.variant.id == "D"
    assert json.loads((family_folder / NOTE).read_text()) == {"family": "D"}
    assert run_node("Loader", **choices())[0].model.variant.id == "D"
    with pytest.raises(CheckpointError, match="not a checkpoint of MMaDA-Parallel-M"):
        run_node("Loader", **choices(family="MMaDA-Parallel-M"))
    assert json.loads((family_folder / NOTE).read_text()) == {"family": "D"}


def test_the_embedded_checkpoints_keep_their_folders(run_node, nodes):
    embedded = nodes.load.folders.checkpoints()
    run_node("Loader", **choices(checkpoint="demo", family="MMaDA-Parallel-A"))
    assert not (embedded["demo"] / NOTE).exists()


def test_prompts_of_another_family_are_refused(encode, lumina, model, classes):
    """Of the same ranges of ids, too, where the result would mean nothing."""
    from mmada_parallel.mmp_core import denoise

    prompt = encode(image=torch.rand(1, 128, 128, 3))
    with pytest.raises(InputError, match="another family than MMaDA-Parallel"):
        model.model.variant.check_prompt(prompt.task)
    with pytest.raises(InputError, match="another family than MMaDA-Parallel"):
        denoise(model.model, prompt)
    with pytest.raises(InputError, match="another family than Lumina-DiMOO"):
        lumina.model.variant.check_prompt("")


def test_a_picture_alone(encode, denoised, run_node, lumina):
    prompt = encode(image=torch.rand(2, 128, 128, 3), second_image=torch.rand(1, 128, 128, 3))
    assert prompt.task == "style" and len(prompt.reference) == 2
    tokens, trajectory = denoised(prompt, model=lumina, image_steps=2).result
    assert run_node("DecodeText", model=lumina, tokens=tokens)[0] == "\n\n"
    assert run_node("DecodeImage", model=lumina, tokens=tokens, fill="grey")[0].shape[0] == 2
    assert_sheet(run_node, lumina, trajectory)


def test_a_text_alone(encode, denoised, run_node, lumina, training_folders, monkeypatch):
    prompt = encode(image=torch.rand(1, 128, 128, 3), task="describe", text_length=6)
    output = denoised(prompt, model=lumina, text_steps=3)
    tokens, trajectory = output.result
    assert tokens.text.shape == (1, 6) and tokens.image.numel() == 0
    (data,) = output.ui["mmada_parallel_steps"][0][0]["samples"]
    assert data["sheet"] is None and len(data["words"]) == 6
    run_node("DecodeText", model=lumina, tokens=tokens)
    with pytest.raises(InputError, match="text alone, without a picture: use Decode Text"):
        run_node("DecodeImage", model=lumina, tokens=tokens, fill="grey")
    assert_sheet(run_node, lumina, trajectory)
    reopened = {"picture": "reopen masked", "text": "keep all", "words": "", "pattern": ""}
    mask = torch.ones(1, 8, 8)
    with pytest.raises(InputError, match="text alone: disconnect the mask"):
        run_node("Remask", model=lumina, tokens=tokens, mask=mask, coverage=0.0, **reopened)
    with pytest.raises(InputError, match="text alone: connect the picture"):
        run_node("ScoreAlignment", clip="demo", model=lumina, trajectory=trajectory)
    monkeypatch.setattr(training_folders, "runs_with_adapters", lambda: {"any": None})
    with pytest.raises(InputError, match="text alone: choose one with a picture"):
        run_node("CompareAdapters", model=lumina, prompt=prompt, run="any", seed=0, step=0)
    sides = {"left": 32, "top": 0, "right": 0, "bottom": 0}
    with pytest.raises(InputError, match="text alone: there is no picture to extend"):
        run_node("ExtendCanvas", model=lumina, prompt=prompt, **sides)
    drawn, given = TokenState(tokens.text, torch.zeros(1, 4, 4).long()), {"prompt": prompt}
    for result in (tokens, drawn):
        with pytest.raises(InputError, match="text alone: there is no picture to put back"):
            run_node("PutBack", model=lumina, tokens=result, original=mask[..., None], **given)


def test_a_picture_alone_has_no_text_to_set_or_select(encode, run_node, lumina):
    prompt = encode(image=torch.rand(1, 128, 128, 3), task="edit")
    assert prompt.initial.text.shape == (1, 0)
    given = {"model": lumina, "prompt": prompt, "rest": "auto", "instruction": "keep"}
    with pytest.raises(InputError, match="a picture alone, without text: leave the text empty"):
        run_node("SetTokens", text="the star", **given)
    reopened = {"picture": "keep all", "text": "reopen selected", "coverage": 0.0}
    given = {"model": lumina, "tokens": prompt.initial, **reopened}
    assert run_node("Remask", words="", pattern="a", **given)[0].text.shape == (1, 0)
    with pytest.raises(InputError, match="the text has 0 words"):
        run_node("Remask", words="1", pattern="", **given)


def assert_sheet(run_node, model, trajectory):
    sheet, frames = run_node(
        "TrajectorySheet",
        model=model,
        trajectory=trajectory,
        steps=3,
        columns=2,
        confidence=False,
        side=64,
        sample=0,
    ).result
    assert frames.shape[1:] == (80, 152, 3) and sheet.shape[2] == 304


def test_settings_are_the_task_s(nodes, lumina):
    advice = nodes.denoise._RECOMMENDED
    settings = nodes.denoise.settings_of(lumina.model.variant, "corrected", 0, "edit", **advice)
    assert (settings.text_guidance, settings.image_guidance) == (2.5, 4.0)
    own = nodes.denoise.settings_of(
        lumina.model.variant, "upstream", 0, "describe", **{**advice, "block_length": 0}
    )
    assert (own.text_steps, own.block_length, own.preset) == (128, 0, "upstream")


def test_other_families_refuse_the_tasks_by_name(run_node, model, classes):
    given = {"instruction": "red", "width": 0, "height": 0, "text_length": 0}
    picture = torch.rand(1, 128, 128, 3)
    with pytest.raises(InputError, match="MMaDA-Parallel-A was not trained on the task 'style'"):
        run_node("EncodeInstruction", model=model, image=picture, task="style", **given)
    with pytest.raises(InputError, match="MMaDA-Parallel-A takes one picture, and 2 were given"):
        run_node("EncodeInstruction", model=model, image=picture, second_image=picture, **given)
    valid = classes["MMaDAParallelEncodeInstruction"].validate_inputs
    assert valid("", "style") is True and "is empty" in valid("", "edit")


def test_the_page_is_told_what_a_family_does_and_recommends(nodes, lumina):
    facts_of = nodes.load.host.page.family_facts
    demo = facts_of("demo", "auto")
    assert demo["tasks"] == ["edit", "generate"] and (demo["unit"], demo["side"]) == (32, 128)
    assert demo["profiles"]["recommended"][""]["image_steps"] == 30
    assert demo["profiles"]["reference"][""]["preset"] == "upstream"
    other = facts_of("demo", "Lumina-DiMOO")
    assert "describe" in other["tasks"] and other["unit"] == 32
    assert other["profiles"]["recommended"]["edit"]["image_guidance"] == 4.0
    assert other["profiles"]["quick look"]["edit"]["image_steps"] == 16
    assert "style" in facts_of("unnamed", "")["tasks"]  # remembered
    with pytest.raises(InputError):
        facts_of("gone", "auto")


def test_a_checkpoint_s_own_guidance_is_recommended(nodes, model_folder):
    folder = model_folder / "guided"
    shutil.copytree(model_folder / "untrained", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"recommended_guidance": 1.25}))
    facts = nodes.load.host.page.family_facts("guided", "auto")
    profiles = {name: values[""]["joint_guidance"] for name, values in facts["profiles"].items()}
    model = nodes.load.host.load("guided", "auto", "auto").model
    settings_of = partial(nodes.denoise.settings_of, model.variant, config=model.config)
    shutil.rmtree(folder)
    assert (profiles["recommended"], profiles["quick look"]) == (1.25, 1.25)
    assert profiles["reference"] != 1.25
    for profile in profiles:
        settings = settings_of("corrected", 0, "", profile)
        assert settings.joint_guidance == profiles[profile]
    settings = settings_of("corrected", 0, joint_guidance=-1.0)
    assert settings.joint_guidance == 1.25

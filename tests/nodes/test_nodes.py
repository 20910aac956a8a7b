"""The nodes' own share: names and lists, widget values to settings, batches, decoding."""

import inspect
import re

import numpy as np
import pytest
import torch
from mmada_parallel.demo.photo import PAINTING
from mmada_parallel.mmp_core import MASKED, InputError, TokenState
from mmada_parallel.mmp_core.variants.registry import variant_named
from mmada_parallel.tests.nodes.help_lists import PAGES, filled
from mmada_parallel.tests.nodes.hosted import Recorder

ADVICE = {
    "text_steps": 0,
    "image_steps": 0,
    "joint_guidance": -1.0,
    "text_guidance": -1.0,
    "image_guidance": -1.0,
    "reasoning_guidance": -1.0,
}


def run(node, **inputs):
    return node.PREPARE_CLASS_CLONE(None).execute(**inputs)


MAIN = {
    "Load MMaDA-Parallel",
    "Encode Instruction",
    "Parallel Denoise",
    "Decode Text",
    "Decode Image",
    "ParaRL Finetune",
}
OURS_ALONE = {"Demo Scene", "Trajectory Step", "Trajectory Sheet"}


def test_names_that_others_may_have_say_whose_they_are(classes):
    names = {node.define_schema().display_name for node in classes.values()}
    assert names >= MAIN and len(names) == len(classes)
    assert all("(MMaDA)" in name for name in names - MAIN - OURS_ALONE)


def test_every_input_is_read_and_every_socket_explained(classes):
    for node in classes.values():
        schema = node.define_schema()
        accepted = inspect.signature(node.execute).parameters
        takes_more = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        for socket in schema.inputs:
            assert socket.tooltip and (socket.id in accepted or takes_more)
        assert all(socket.tooltip and socket.display_name for socket in schema.outputs)
        assert schema.description and schema.category.split("/")[0] == "MMaDA-Parallel"


def test_the_lists_of_the_help_pages_are_those_of_the_schemas(classes):
    for node_id, node in classes.items():
        page = (PAGES / f"{node_id}.md").read_text(encoding="utf-8")
        assert page == filled(page, node.define_schema()), (
            f"{node_id}.md differs from its node: python -m mmada_parallel.tests.nodes.help_lists"
        )


def test_a_help_page_that_differs_is_found(classes):
    schema = classes["MMaDAParallelRemask"].define_schema()
    page = (PAGES / "MMaDAParallelRemask.md").read_text(encoding="utf-8")
    assert filled(page.replace("0 to 0.99", "0 to 1"), schema) == page
    assert filled(page.replace("red|blue", "green"), schema) == page


def test_recommended_values_are_the_presets_own(nodes):
    of = nodes.denoise.settings_of
    assert of(variant_named("A"), "corrected", 0, **ADVICE) == nodes.denoise.SamplerSettings()
    for variant in "AM":
        upstream = nodes.denoise.SamplerSettings.upstream(variant, seed=7)
        assert of(variant_named(variant), "upstream", 7, **ADVICE) == upstream
    chosen = of(
        variant_named("A"), "corrected", 0, **{**ADVICE, "joint_guidance": 0.0, "text_steps": 5}
    )
    assert (chosen.joint_guidance, chosen.text_steps, chosen.image_steps) == (0.0, 5, 30)


@pytest.mark.parametrize("variant", ["A", "M"])
def test_a_profile_sets_steps_guidance_and_preset_whatever_the_widgets_say(nodes, variant):
    of, family = nodes.denoise.settings_of, variant_named(variant)
    typed = {"text_steps": 5, "joint_guidance": 9.0, "image_temperature": 0.5}
    recommended = of(family, "upstream", 3, profile="recommended", **typed)
    assert recommended == nodes.denoise.SamplerSettings(seed=3, image_temperature=0.5)
    quick = of(family, "corrected", 3, profile="quick look", **typed)
    assert (quick.text_steps, quick.image_steps, quick.joint_guidance) == (32, 8, 3.5)
    reference = of(family, "corrected", 3, profile="reference", **typed)
    assert reference == nodes.denoise.SamplerSettings.upstream(
        variant, seed=3, image_temperature=0.5
    )
    own = of(family, "corrected", 3, profile="own values", **typed)
    assert (own.text_steps, own.image_steps, own.joint_guidance) == (5, 30, 9.0)


def test_a_profile_works_without_the_page_and_the_node_says_what_was_used(encoded, denoised):
    prompt = encoded(text_length=9)
    output = denoised(prompt, seed=3, profile="quick look", image_steps=1, joint_guidance=0.0)
    same, _ = denoised(prompt, seed=3, text_steps=32, image_steps=8, joint_guidance=3.5)
    assert torch.equal(output[0].image, same.image) and torch.equal(output[0].text, same.text)
    (((run,),),) = output.ui.values()
    assert run["used"] == (
        "Quick look for MMaDA-Parallel-A: 32 text steps, 8 image steps, guidance 3.5."
    )
    (((run,),),) = denoised(prompt, text_steps=2, joint_guidance=0.0, speed="fast").ui.values()
    assert run["used"] == "Used: 2 text steps, 30 image steps, speed fast."


def test_a_run_takes_the_guidance_that_the_checkpoint_recommends(
    encoded, denoised, model, monkeypatch
):
    own = {**model.model.config, "recommended_guidance": 1.25}
    monkeypatch.setattr(model.model, "config", own)
    (((run,),),) = denoised(encoded(text_length=9), profile="quick look").ui.values()
    assert run["used"].endswith("8 image steps, guidance 1.25.")


def test_a_target_reduces_the_run_and_the_node_says_what_it_takes_and_took(encoded, denoised):
    prompt = encoded(text_length=9)
    whole, _ = denoised(prompt, text_steps=8, image_steps=8)
    output = denoised(prompt, text_steps=8, image_steps=8, at_most_operations=30.0)
    (((run,),),) = output.ui.values()
    used = re.fullmatch(
        r"For the target: (\d) text steps, (\d) image steps, guidance 3.5.*\. Expected: (\S+) % of "
        r"exact's operations and, by .*, about \S+ s\. Took (\S+) % of exact's operations and .*",
        run["used"],
    )
    assert used and used[3] == used[4] and 15 <= float(used[3]) <= 30
    assert not torch.equal(output[0].image, whole.image)
    with pytest.raises(ValueError, match="^at_most_operations is 1 %, but with one step"):
        denoised(prompt, at_most_operations=1.0)


def test_new_nodes_show_numbers_and_no_stand_ins(classes):
    defaults = {
        i.id: i.default
        for i in classes["MMaDAParallelDenoise"].define_schema().inputs
        if getattr(i, "default", None) is not None
    }
    assert defaults["profile"] == "own values"  # of workflows that have none
    assert {n: defaults[n] for n in ADVICE} == {
        "text_steps": 128,
        "image_steps": 30,
        "joint_guidance": 3.5,
        "text_guidance": 0.0,
        "image_guidance": 0.0,
        "reasoning_guidance": 0.0,
    }
    assert defaults["block_length"] == 0


def test_numbers_are_shown_with_all_their_digits(classes):
    """The page rounds to the digits of the step, of one digit where there is none."""
    for node in classes.values():
        for socket in node.define_schema().inputs:
            if socket.io_type == "FLOAT" and socket.default is not None:
                steps = socket.default / (socket.step or 0.1)
                assert socket.step and abs(steps - round(steps)) < 1e-6, socket.id


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_survive_the_way_into_the_node(nodes, channels):
    levels = torch.arange(6 * channels).view(2, 3, channels) / 255
    picture = nodes.pictures.to_picture(levels)
    assert picture.size == (3, 2) and picture.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    read = torch.from_numpy(np.array(picture)).view(2, 3, channels)
    assert torch.equal(read, (levels * 255).round().to(torch.uint8))


def test_a_batch_of_pictures_gives_a_batch_of_prompts(encoded):
    pictures = torch.rand(2, 128, 128, 3)
    both, second = encoded(pictures), encoded(pictures[1:])
    assert (both.batch, second.batch) == (2, 1)
    assert torch.equal(both.image[1:], second.image)
    assert both.initial.grid == (4, 4) and (both.initial.text == MASKED).all()


def test_size_and_text_length(encoded):
    prompt = encoded(width=96, height=64, text_length=9)
    assert prompt.image is None
    assert prompt.initial.grid == (2, 3) and prompt.initial.text.shape == (1, 9)
    assert encoded().initial.grid == (4, 4)
    assert encoded(width=96).initial.grid == (3, 3)
    assert encoded(width=100, height=96).initial.grid == (3, 3)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(encoded, denoised):
    prompt = encoded(torch.rand(1, 128, 128, 3))
    tokens, trajectory = denoised(prompt, seed=3, batch_size=2, text_temperature=1.0)
    alone, _ = denoised(prompt, seed=4, text_temperature=1.0)
    assert tokens.batch == 2 and not (tokens.image == MASKED).any()
    assert torch.equal(tokens[1:].image, alone.image) and torch.equal(tokens[1:].text, alone.text)
    assert trajectory.final is tokens and len(trajectory) == trajectory.total_steps


def test_tokens_to_start_from_are_kept(encoded, denoised):
    prompt = encoded()
    tokens, _ = denoised(prompt, batch_size=2)
    half = TokenState(tokens.text, torch.where(tokens.image % 2 == 0, tokens.image, MASKED))
    again, _ = denoised(prompt, seed=9, tokens=half)
    kept = half.image != MASKED
    assert torch.equal(again.text, half.text)
    assert torch.equal(again.image[kept], half.image[kept]) and (again.image != MASKED).all()
    with pytest.raises(InputError, match="batch"):
        denoised(prompt.repeat(3), tokens=half)


def test_interruption_stops_at_the_next_step(host, encoded, denoised):
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        denoised(encoded())
    assert denoised(encoded())


@pytest.fixture
def narrow(host, monkeypatch):
    """Memory for two samples at once."""
    monkeypatch.setattr(host.HostBudget, "samples", lambda budget, estimate, batch: min(2, batch))


def test_a_batch_in_parts_gives_what_it_gives_at_once(encoded, denoised, request):
    prompt = encoded(torch.rand(1, 128, 128, 3))
    tokens, trajectory = denoised(prompt, batch_size=3, text_temperature=1.0)
    request.getfixturevalue("narrow")
    again, parts = denoised(prompt, batch_size=3, text_temperature=1.0)
    assert torch.equal(again.text, tokens.text) and torch.equal(again.image, tokens.image)
    assert (len(parts), parts.total_steps) == (len(trajectory), trajectory.total_steps)


def test_a_batch_in_parts_is_announced_and_fills_the_bar_once(
    nodes, narrow, encoded, denoised, monkeypatch
):
    recorder = Recorder()
    monkeypatch.setattr(nodes.denoise, "Progress", lambda node_id: recorder)
    monkeypatch.setattr(nodes.live.LiveView, "say", lambda *_: None)
    output = denoised(encoded(), batch_size=3)
    steps = output[1].total_steps
    expected = [(done, 2 * steps) for done in range(1, 2 * steps + 1)]
    assert recorder.steps == [*expected, (2 * steps, 2 * steps)]
    assert recorder.texts[0].startswith("[samples 0 to 1 of 0 to 2, since there is not")
    assert recorder.texts[-2].startswith("[sample 2 of 0 to 2, since there is not enough memory")
    assert recorder.texts[-1].startswith("[in parts, since there was not enough memory")
    assert {state for _, state in recorder.words[steps][1]} == {"masked", "new"}
    (((data,),),) = output.ui.values()
    assert data["total"] == data["planned"] == steps and data["kept"] is None
    assert len(data["samples"]) == 3 and all(sample["sheet"] for sample in data["samples"])
    assert [place["sample"] for place in recorder.places] == [0] * steps + [2] * steps + [0]
    assert {place["batch"] for place in recorder.places} == {3}


def test_too_little_memory_is_one_sentence_that_comfyui_takes_for_what_it_is(
    encoded, denoised, model, monkeypatch
):
    import comfy.model_management as management

    def full(ids, **_):
        raise management.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(model.model.transformer, "forward", full)
    with pytest.raises(management.OOM_EXCEPTION, match="Memory ran out: 2 results of 4x4") as told:
        denoised(encoded(), batch_size=4)
    assert "\n" not in str(told.value)


def test_decoded_results_and_what_is_undecided(classes, model, encoded, denoised):
    tokens, _ = denoised(encoded(), batch_size=2)
    text = run(classes["MMaDAParallelDecodeText"], model=model, tokens=tokens)
    assert text.result[0].count("\n\n") == 1 and text.ui.as_dict() == {"text": (text.result[0],)}
    half = TokenState(tokens.text, tokens.image.clone())
    half.image[0, 0, 0] = MASKED
    decode = classes["MMaDAParallelDecodeImage"]
    image = run(decode, model=model, tokens=half, fill="grey")[0]
    assert image.shape == (2, 128, 128, 3) and image.dtype == torch.float32
    assert torch.equal(image[0, :32, :32], torch.full((32, 32, 3), 0.5))


def test_the_demo_scene_is_the_same_for_the_same_seed(classes, monkeypatch):
    scene = classes["MMaDAParallelDemoScene"]
    from comfy_api.v0_0_2 import ui

    monkeypatch.setattr(ui.ImageSaveHelper, "save_images", lambda *a, **k: [])
    image, instruction = run(scene, seed=3, edit="remove").result
    again, _ = run(scene, seed=3, edit="remove").result
    assert image.shape == (1, 128, 128, 3) and torch.equal(image, again)
    assert instruction.split()[0] in ("remove", "delete")


def test_a_page_of_the_picture_book_is_as_large_as_its_checkpoint_draws(run_node):
    page, instruction = run_node("DemoScene", seed=3, edit="swap", world="picture-book")
    assert page.shape == (1, 256, 256, 3)
    assert "swap" in instruction or "change places" in instruction
    room, _ = run_node("DemoScene", seed=3, edit="swap", picture="room", world="picture-book")
    assert room.shape == (1, 1024, 1536, 3)
    left, top, right, bottom = PAINTING
    hung = room[:, top:bottom, left:right]
    assert (hung - page).abs().mean() < 0.02


@pytest.mark.parametrize("edit, world", [("swap", "demo"), ("count", "picture-book")])
def test_an_edit_of_another_world_is_refused(run_node, edit, world):
    with pytest.raises(InputError, match=f"no edit {edit} in the world {world}: choose any, "):
        run_node("DemoScene", seed=3, edit=edit, world=world)


@pytest.mark.parametrize(
    "picture, size", [("scene", (128, 128)), ("large print", (1024, 1024)), ("room", (1024, 1536))]
)
def test_a_scene_comes_alone_or_in_a_large_picture(run_node, picture, size):
    image, instruction = run_node("DemoScene", seed=6, edit="replace", picture=picture)
    assert image.shape == (1, *size, 3) and "green cross" in instruction

"""Score Alignment and Pick Sample: what decides, what is scored against what, best of N."""

import os
import shutil

import pytest
import torch
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import HELD_OUT, text_ids
from mmada_parallel.demo.render import render
from mmada_parallel.mmp_core import (
    CheckpointError,
    InputError,
    SamplerSettings,
    TokenState,
    Trajectory,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
)
from mmada_parallel.training.dpo.preferences import open_preferences
from mmada_parallel.training.rewards.clip import DEMO_CLIP, ClipScorer, score_trajectory
from torchvision.transforms.functional import to_tensor

TASKS = [world.task(HELD_OUT + i) for i in range(4)]


@pytest.fixture(scope="session")
def scorer():
    return ClipScorer(DEMO_CLIP)


@pytest.fixture(scope="session")
def demo(host):
    return host.load("demo", "auto", "auto")


@pytest.fixture(scope="session")
def tokens(demo):
    """The sentences of four scenes; only the third has its own picture."""
    layout = demo.model.layout
    text = torch.cat([text_ids(layout, task.sentence) for task in TASKS])
    codes = [TASKS[i].after.codes() for i in (1, 0, 2, 0)]
    return TokenState(text, torch.tensor(codes))


@pytest.fixture(scope="session")
def trajectory(demo):
    prompt = encode_instruction(demo.model, "draw a blue star on white", batch=2)
    settings = SamplerSettings(text_steps=5, image_steps=3, joint_guidance=0.0)
    return denoise(demo.model, prompt, settings)


@pytest.fixture
def score(nodes, monkeypatch):
    monkeypatch.setattr(nodes.pictures.ui.ImageSaveHelper, "save_images", lambda *a, **k: [])

    def score_node(**inputs):
        node = nodes.score.ScoreAlignment.PREPARE_CLASS_CLONE(None)
        return node.execute(**{"clip": "demo", **inputs}).result

    return score_node


def pictures(*tasks):
    return torch.stack([to_tensor(render(task.after)).permute(1, 2, 0) for task in tasks])


def check(result, expected):
    score, mean, best, plot = result
    assert (type(score), type(mean), type(best)) == (float, float, int)
    assert best == int(expected.argmax())
    assert score == pytest.approx(expected.max().item(), abs=1e-5)
    assert mean == pytest.approx(expected.mean().item(), abs=1e-5)
    assert plot.shape == (1, 400, 640, 3) and 0 <= plot.min() < plot.max() == 1


def test_a_clip_is_comfyuis_to_manage_and_kept_between_scores(host, score, demo, tokens):
    import comfy.model_management as management

    clip = host.load_clip("demo")
    management.unload_all_models()
    score(model=demo, tokens=tokens)
    assert clip.patcher in [entry.model for entry in management.current_loaded_models]
    assert host.load_clip("demo") is clip
    assert not any(weight.is_inference() for weight in clip.model.parameters())


def test_a_clip_whose_files_changed_is_read_again(host, folders, tmp_path, monkeypatch):
    folder = tmp_path / "clip"
    shutil.copytree(DEMO_CLIP, folder)
    monkeypatch.setattr(host.clip, "clips", lambda: {"mine": folder})
    clip = host.load_clip("mine")
    assert host.load_clip("mine") is clip
    os.utime(folder / "open_clip_config.json", (0, 0))
    assert host.load_clip("mine") is not clip


def test_a_clip_stays_while_pictures_are_decoded_and_a_model_is_trained(host, demo, monkeypatch):
    """ComfyUI unloads what a later call does not name."""
    import comfy.model_management as management

    asked, load = [], management.load_models_gpu
    clip = host.load_clip("demo")
    clip.prepare()

    def recorded(patchers, **options):
        asked.append(set(patchers))
        load(patchers, **options)

    monkeypatch.setattr(management, "load_models_gpu", recorded)
    clip.prepare()
    assert asked == []
    demo.prepare_decoding((4, 4), clip)
    host.TrainingMemory(demo, [clip]).prepare(1)
    assert asked == [
        {demo.image_patcher, clip.patcher},
        {demo.patcher, demo.image_patcher, clip.patcher},
    ]


def test_tokens_are_scored_by_their_own_text_and_picture(score, scorer, demo, tokens):
    expected = scorer.score(decode_text(demo.model, tokens), decode_image(demo.model, tokens))
    assert len(set(expected.tolist())) == 4
    check(score(model=demo, tokens=tokens), expected)


def test_a_trajectory_is_scored_by_its_end_and_plotted_by_its_steps(
    score, scorer, demo, trajectory, nodes, monkeypatch
):
    plotted = []
    plot = nodes.score.line_plot
    monkeypatch.setattr(
        nodes.score, "line_plot", lambda v, x, **k: plotted.append((v, x)) or plot(v, x, **k)
    )
    expected = score_trajectory(scorer, demo.model, trajectory)
    check(score(model=demo, trajectory=trajectory), expected[-1])
    values, steps = plotted[0]
    assert torch.allclose(values, expected, atol=1e-5)
    assert steps == [*range(1, len(trajectory) + 1), len(trajectory)]


def test_a_trajectory_of_which_nothing_was_recorded_is_scored_by_its_end(
    score, scorer, demo, trajectory
):
    final = trajectory.final
    expected = scorer.score(decode_text(demo.model, final), decode_image(demo.model, final))
    check(score(model=demo, trajectory=Trajectory((), final, final, len(trajectory))), expected)


def test_text_and_picture_alone_need_no_model(score, scorer):
    sentence = TASKS[1].sentence
    expected = scorer.score([sentence] * 3, [render(task.after) for task in TASKS[:3]])
    check(score(text=sentence, image=pictures(*TASKS[:3])), expected)


def test_given_text_or_picture_takes_the_place_of_the_tokens_own(
    score, scorer, demo, tokens, trajectory
):
    sentence = TASKS[0].sentence
    own = decode_image(demo.model, tokens)
    check(score(model=demo, tokens=tokens, text=sentence), scorer.score([sentence] * 4, own))
    given = [render(task.after) for task in TASKS]
    expected = scorer.score(decode_text(demo.model, tokens), given)
    check(score(model=demo, tokens=tokens, image=pictures(*TASKS)), expected)
    curves = score_trajectory(scorer, demo.model, trajectory, images=given[:1] * 2)
    found = score(model=demo, trajectory=trajectory, image=pictures(TASKS[0]))
    check(found, curves[-1])


def test_best_of_n_is_a_graph_of_two_nodes(nodes, score, scorer, demo, tokens):
    _, _, best, _ = score(model=demo, tokens=tokens)
    picked = nodes.score.PickSample.execute(tokens, best)[0]
    assert picked.batch == 1
    assert torch.equal(picked.text[0], tokens.text[best])
    assert torch.equal(picked.image[0], tokens.image[best])
    alone, _, first, _ = score(model=demo, tokens=picked)
    rest = scorer.score(decode_text(demo.model, tokens), decode_image(demo.model, tokens))
    assert first == 0 and alone == pytest.approx(rest.max().item(), abs=1e-5)


@pytest.mark.parametrize("index", [-1, 4])
def test_a_sample_that_is_not_there_is_refused(nodes, tokens, index):
    with pytest.raises(InputError, match=f"index is {index}, .* batch of 4: choose 0 to 3"):
        nodes.score.PickSample.execute(tokens, index)


def test_what_cannot_be_scored_is_said(score, demo, tokens, trajectory):
    with pytest.raises(InputError, match="nothing to score"):
        score(model=demo, text="a red star")
    with pytest.raises(InputError, match="the model that made them"):
        score(tokens=tokens)
    with pytest.raises(InputError, match="disconnect one"):
        score(model=demo, tokens=tokens, trajectory=trajectory)
    with pytest.raises(InputError, match="3 images for 4 samples"):
        score(model=demo, tokens=tokens, image=pictures(*TASKS[:3]))
    with pytest.raises(InputError, match="3 images for 2 samples"):
        score(model=demo, trajectory=trajectory, image=pictures(*TASKS[:3]))


def test_interruption_stops_between_steps(score, demo, tokens, trajectory):
    import comfy.model_management as management

    for inputs in ({"tokens": tokens}, {"trajectory": trajectory}):
        management.interrupt_current_processing()
        with pytest.raises(management.InterruptProcessingException):
            score(model=demo, **inputs)


@pytest.mark.parametrize("images", [True, False], ids=["pictures", "texts"])
def test_interruption_stops_a_clip_between_pictures_and_between_layers(host, monkeypatch, images):
    import comfy.model_management as management

    clip, count = host.load_clip("demo"), 8
    work = clip.image_features if images else clip.text_features
    given = [render(TASKS[0].after)] * count if images else [f"word {n}" for n in range(count)]
    asked = []

    def ask():
        asked.append(None)
        if len(asked) == stop:
            raise management.InterruptProcessingException

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", ask)
    stop = 0
    expected = work(given)
    total = len(asked)
    assert total > 10 + count * images
    for stop in range(1, total + 1):
        asked.clear()
        with pytest.raises(management.InterruptProcessingException):
            work(given)
        assert len(asked) == stop
    stop = 0
    assert torch.equal(work(given), expected)


def test_only_folders_with_a_config_are_offered_as_clips(host, folders, tmp_path, monkeypatch):
    import folder_paths

    paths, extensions = folder_paths.folder_names_and_paths["open_clip"]
    assert extensions == {".safetensors", ".bin"}
    entry = ([str(tmp_path), *paths], extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "open_clip", entry)
    for name in ("ViT-B-32", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "ViT-B-32" / "open_clip_config.json").write_text("{}")
    assert list(folders.clips()) == ["demo", "ViT-B-32"]
    assert folders.clips() == {"demo": DEMO_CLIP, "ViT-B-32": tmp_path / "ViT-B-32"}
    for name in ("../notes", "notes", str(DEMO_CLIP)):
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            host.load_clip(name)


def test_the_users_own_clip_paths_are_kept(folders):
    import folder_paths

    before = list(folder_paths.get_folder_paths("open_clip"))
    folder_paths.add_model_folder_path("open_clip", "from/extra_model_paths")
    try:
        folders._register_folder("open_clip", {".safetensors", ".bin"})
        assert set(folder_paths.get_folder_paths("open_clip")) == {
            *before,
            "from/extra_model_paths",
        }
    finally:
        folder_paths.get_folder_paths("open_clip").remove("from/extra_model_paths")


@pytest.fixture
def picking(nodes, demo, trajectory, tmp_path, monkeypatch):
    """``picking(index, linked=False, **inputs)``: what Pick Sample gives, and the picks."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    monkeypatch.setattr(nodes.score, "_seen", {})
    prompt = encode_instruction(demo.model, "draw a blue star on white", batch=2)
    batch = trajectory.final
    different = TokenState(batch.text.clone(), batch.image.clone())
    different.image[1, 0, 0] = (different.image[0, 0, 0] + 1) % 5

    def run(index, linked=False, **inputs):
        node = nodes.score.PickSample.PREPARE_CLASS_CLONE(None)
        graph = {"7": {"inputs": {"index": ["6", 2] if linked else index}}}
        node.hidden = node.hidden or type("Hidden", (), {})()
        node.hidden.prompt, node.hidden.unique_id = graph, "7"
        given = {"model": demo, "prompt": prompt, "preferences": "mine", "tokens": different}
        said = node.execute(index=index, **{**given, **inputs})
        files = sorted((tmp_path / "mmada_parallel" / "preferences").glob("*/*"))
        return said, files

    run.batch = different
    return run


def test_a_pick_is_kept_once_the_batch_was_seen(picking, demo):
    said, files = picking(0)
    assert "Not kept yet" in said.ui["text"][0] and not files
    said, files = picking(1)
    assert "sample 1 is the best of 2. mine now holds 1 pick." in said.ui["text"][0]
    assert torch.equal(said.result[0].image, picking.batch.image[1:])
    picks = open_preferences(files[0].parent).cases(demo.model)
    assert [case.instruction for case in picks] == ["draw a blue star on white"]
    assert torch.equal(picks[0].target.image, picking.batch.image[1:])
    _, files = picking(0)
    assert len(files) == 1
    (other,) = open_preferences(files[0].parent).cases(demo.model)
    assert torch.equal(other.target.image, picking.batch.image[:1])


def test_a_pick_of_another_node_is_kept_at_once(picking):
    assert "Kept: sample 1" in picking(1, linked=True)[0].ui["text"][0]


def test_picks_need_model_and_prompt(picking):
    for missing in ("model", "prompt"):
        with pytest.raises(InputError, match="connect model and prompt"):
            picking(0, **{missing: None})
    with pytest.raises(InputError, match="without folders"):
        picking(0, preferences="../elsewhere")
    said, files = picking(1, preferences=" ", model=None, prompt=None)
    assert not files and said.ui is None

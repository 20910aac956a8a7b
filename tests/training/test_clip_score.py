"""The demo's CLIP is weak: what is asked of it here is far easier than what it gets wrong."""

import json
import shutil
import socket
import sys
from itertools import pairwise

import open_clip
import pytest
import torch
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import HELD_OUT
from mmada_parallel.demo.render import render
from mmada_parallel.mmp_core import (
    CheckpointError,
    InputError,
    SamplerSettings,
    decode_image,
    decode_text,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.training.rewards.clip import DEMO_CLIP, ClipScorer, score_trajectory
from mmada_parallel.training.rewards.clip_files import CONFIG, check_clip
from PIL import Image

SENTENCES = [
    "the blue circle at row 2 column 4 becomes a green cross .",
    "a yellow cross appears at row 2 column 1 .",
    "the sea is blue , so the orange diamond at row 2 column 3 becomes blue .",
    "the red circle at row 1 column 4 becomes a green cross .",
]


@pytest.fixture(scope="session")
def scorer():
    return ClipScorer(DEMO_CLIP)


@pytest.fixture(scope="session")
def picture():
    return render(world.task(HELD_OUT).after)


@pytest.fixture(scope="session")
def demo():
    return load_checkpoint("demo", device="cpu")


@pytest.fixture(scope="session")
def trajectory(demo):
    prompt = encode_instruction(demo, "draw a blue star on white", batch=2)
    settings = SamplerSettings(text_steps=8, image_steps=3, joint_guidance=0.0)
    return denoise(demo, prompt, settings)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(DEMO_CLIP, tmp_path / "clip")


@pytest.fixture
def connections(monkeypatch):
    """Every attempt to reach the network, none of which succeeds."""
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


@pytest.fixture(scope="session")
def openai_like(tmp_path_factory):
    """Random weights with open_clip's own tokenizer, stored as a pickle."""
    folder = tmp_path_factory.mktemp("clips") / "tiny"
    folder.mkdir()
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def test_the_sentence_of_a_picture_scores_above_that_of_another(scorer):
    tasks = [world.task(HELD_OUT + i) for i in range(100)]
    pictures, sentences = [render(t.after) for t in tasks], [t.sentence for t in tasks]
    own = scorer.score(sentences, pictures)
    assert own.shape == (100,) and own.dtype == torch.float32 and own.abs().max() <= 1
    others = scorer.score([*sentences[1:], sentences[0]], pictures)
    assert (own > others).float().mean() >= 0.85


def test_the_edited_picture_scores_above_the_one_before(scorer):
    kinds = [kind for kind in world.KINDS if kind != "generate"]
    tasks = [world.task(HELD_OUT + i, kinds=kinds) for i in range(200)]
    sentences = [t.sentence for t in tasks]
    after = scorer.score(sentences, [render(t.after) for t in tasks])
    before = scorer.score(sentences, [render(t.before) for t in tasks])
    assert (after > before).float().mean() >= 0.75


def test_a_long_text_scores_the_mean_of_parts_that_lose_nothing(scorer, picture):
    text = " ".join(SENTENCES)
    parts = scorer.parts(text)
    assert len(parts) > 1 and " ".join(parts) == text
    assert max(len(part.split()) for part in parts) <= 21
    whole, each = scorer.score([text], [picture]), scorer.score(parts, [picture] * len(parts))
    assert whole.item() == pytest.approx(each.mean().item(), abs=1e-5)
    assert len(set(each.tolist())) > 1
    ending = scorer.score([text.replace("green cross .", "red star .")], [picture])
    assert abs((whole - ending).item()) > 1e-3


def test_a_text_that_fits_is_one_part(scorer):
    for sentence in SENTENCES:
        assert scorer.parts(sentence) == [sentence]


def test_open_clips_own_tokenizer_never_cuts_a_part(openai_like):
    scorer = ClipScorer(openai_like)
    for count in range(1, 40):
        parts = scorer.parts("house " * count)
        words = [len(part.split()) for part in parts]
        assert sum(words) == count
        assert (scorer.towers.tokenizer(parts) != 0).sum(dim=1).tolist() == [n + 2 for n in words]
    letters = scorer.parts("x" * 100)
    assert len(letters) > 1 and "".join(letters) == "x" * 100
    assert (scorer.towers.tokenizer(letters)[:, -1] == 0).all()


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_text_without_words_scores_zero(scorer, picture, text):
    assert scorer.parts(text) == []
    assert scorer.score([text, SENTENCES[0]], [picture] * 2)[0] == 0
    assert scorer.score([text], [picture]).tolist() == [0]


def test_a_pair_scores_the_same_alone_and_in_a_large_batch(scorer):
    tasks = [world.task(HELD_OUT + i) for i in range(40)]
    pictures, sentences = [render(t.after) for t in tasks], [t.sentence for t in tasks]
    scores = scorer.score(sentences, pictures)
    assert scores[36].item() == pytest.approx(scorer.score([sentences[36]], [pictures[36]]).item())
    assert scorer.score([], []).shape == (0,)


def test_pictures_of_any_mode_and_size(scorer):
    pictures = [Image.new("L", (300, 100), 90), Image.new("RGBA", (64, 200), "red")]
    assert scorer.score(SENTENCES[:2], pictures).isfinite().all()


def test_unequal_numbers_are_refused(scorer, picture):
    with pytest.raises(InputError, match="2 texts and 1 images"):
        scorer.score(SENTENCES[:2], [picture])


def test_the_tokenizer_that_the_config_names_comes_from_the_folder(connections):
    assert json.loads((DEMO_CLIP / CONFIG).read_text())["model_cfg"]["text_cfg"][
        "hf_tokenizer_name"
    ]
    ClipScorer(DEMO_CLIP)
    assert connections == []


def test_missing_tokenizer_files_are_not_looked_for_elsewhere(copy, connections):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=f"{copy} cannot be loaded"):
        ClipScorer(copy)
    assert connections == []


def edit_config(folder, part, **changes):
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"][part].update(changes)
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    "part, changes",
    [
        ("text_cfg", {"hf_model_name": "xlm-roberta-base"}),
        ("vision_cfg", {"timm_model_name": "hf-hub:timm/vit_tiny"}),
    ],
)
def test_towers_that_would_be_downloaded_are_refused(copy, connections, part, changes):
    edit_config(copy, part, **changes)
    with pytest.raises(CheckpointError, match="to be downloaded"):
        ClipScorer(copy)
    assert connections == []


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path, copy):
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match=f"{CONFIG} is missing in .*none"):
        ClipScorer(tmp_path / "none")
    (tmp_path / "file").write_text("none")
    for name, said in (("file", "is a file"), ("nowhere", "does not exist")):
        with pytest.raises(CheckpointError, match=f"{name} {said}: give the folder of a CLIP"):
            ClipScorer(tmp_path / name)
    (copy / "open_clip_model.safetensors").rename(copy / "weights.pth")
    with pytest.raises(CheckpointError, match=f"{copy} has no weights"):
        ClipScorer(copy)
    for text in ("{", "[]", '{"model_cfg": {"text_cfg": []}}'):
        (copy / CONFIG).write_text(text)
        with pytest.raises(CheckpointError, match=f"{CONFIG} .*cannot be read|is not a JSON"):
            ClipScorer(copy)


@pytest.mark.parametrize("part", ["text_cfg", "vision_cfg"])
@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 200_000}, {"layers": -1}, {"layers": "12"}, {"layers": [10**9] * 4},
        {"layers": 1000}, {"width": 10**5}, {"width": 2**62}, {"mlp_ratio": float("nan")},
        {"vocab_size": 2**24}, {"image_size": 4096, "patch_size": 1}, {"context_length": 10**7},
    ],
)  # fmt: skip
def test_towers_that_the_weights_contradict_are_not_built(copy, part, changes, monkeypatch):
    check_clip(copy)
    edit_config(copy, part, **changes)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for read in (check_clip, ClipScorer):
        with pytest.raises(CheckpointError, match=f"{CONFIG} has "):
            read(copy)


def test_weights_of_another_model_are_refused_in_one_line(copy):
    edit_config(copy, "text_cfg", width=64)
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        ClipScorer(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cbuiltins\nprint\nX\x04\x00\x00\x00harm\x85R.",  # calls print("harm")
        b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R.",  # a TypeError: open_clip tries again
    ],
)
def test_pickles_are_never_run(copy, monkeypatch, capsys, content):
    load, calls = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **k: calls.append(k) or load(*a, **k))
    (copy / "open_clip_model.safetensors").unlink()
    (copy / "open_clip_pytorch_model.bin").write_bytes(content + b"." * 10**6)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        ClipScorer(copy)
    assert calls and all(kwargs.get("weights_only") for kwargs in calls)
    assert "harm" not in capsys.readouterr().out


def test_code_that_a_folder_asks_for_is_not_fetched(copy, connections):
    edit_config(copy, "text_cfg", tokenizer_kwargs={"trust_remote_code": True})
    path = copy / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "someone/else--code.Tokenizer"]}
    path.write_text(json.dumps(settings | {"tokenizer_class": "Unknown"}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        ClipScorer(copy)
    assert connections == []


def test_without_open_clip_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match="-m pip install open_clip_torch") as caught:
        ClipScorer(DEMO_CLIP)
    assert sys.executable in str(caught.value) and "\n" not in str(caught.value)


def test_a_trajectory_scores_its_text_so_far_against_the_guess(scorer, demo, trajectory):
    rows = score_trajectory(scorer, demo, trajectory)
    assert rows.shape == (len(trajectory) + 1, 2)
    for i in (0, 2, len(trajectory) - 1):
        step = trajectory.steps[i]
        direct = scorer.score(decode_text(demo, step.after), decode_image(demo, step.guess))
        assert torch.allclose(rows[i], direct, atol=1e-5)
    final = trajectory.final
    direct = scorer.score(decode_text(demo, final), decode_image(demo, final))
    assert torch.allclose(rows[-1], direct, atol=1e-5)
    assert len({round(v, 4) for v in rows[:, 0].tolist()}) > 2


def test_given_texts_and_pictures_take_the_place_of_its_own(scorer, demo, trajectory, picture):
    final, texts = trajectory.final, SENTENCES[:2]
    rows = score_trajectory(scorer, demo, trajectory, texts=texts)
    assert torch.allclose(rows[-1], scorer.score(texts, decode_image(demo, final)), atol=1e-5)
    rows = score_trajectory(scorer, demo, trajectory, images=[picture] * 2)
    direct = scorer.score(decode_text(demo, final), [picture] * 2)
    assert torch.allclose(rows[-1], direct, atol=1e-5)


def test_what_did_not_change_is_encoded_once(scorer, demo, trajectory, monkeypatch):
    calls, told = [], []
    encode = ClipScorer.image_features
    monkeypatch.setattr(
        ClipScorer, "image_features", lambda self, images: calls.append(1) or encode(self, images)
    )
    score_trajectory(scorer, demo, trajectory, callback=lambda *now: told.append(now))
    guesses = [*(step.guess.image for step in trajectory), trajectory.final.image]
    changes = sum(not torch.equal(a, b) for a, b in pairwise(guesses))
    assert len(calls) == 1 + changes < len(guesses)
    assert list(dict.fromkeys(told)) == [(i, len(guesses)) for i in range(len(guesses))]
    assert told == sorted(told)

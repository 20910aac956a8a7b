"""What Parallel Denoise shows: previews, words and costs while it runs, its steps afterwards."""

import json
from pathlib import Path

import pytest
import torch
from mmada_parallel.mmp_core import MASKED, TokenState, denoise, encode_instruction
from mmada_parallel.tests.nodes.hosted import Recorder
from PIL import Image


class Clock:
    """Stands for the module ``time``."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(nodes, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(nodes.live, "time", clock)
    return clock


@pytest.mark.parametrize("preview_seconds, each", [(0.13, 0.5), (0.001, 1.0), (3.0, 0.2)])
def test_previews_take_a_twentieth_of_a_run_at_most(
    nodes, model, clock, monkeypatch, preview_seconds, each
):
    """But for the first one, whose cost nobody knows. A new one is made when it can be afforded."""
    taken = []

    def draw(*args):
        clock.now += preview_seconds
        taken.append(clock.now)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(nodes.live, "veiled_picture", draw)
    recorder = Recorder()
    view = nodes.live.LiveView(model.model, recorder, 1)

    def step(*args):
        clock.now += each
        share = (len(taken) + 1) * preview_seconds / clock.now
        before = len(taken)
        view(*args)
        assert (len(taken) > before) == (before == 0 or share <= 0.05)

    denoise(model.model, encode_instruction(model.model, "add a red star"), callback=step)
    assert len(taken) * preview_seconds <= max(preview_seconds, 0.05 * clock.now)


def test_after_three_steps_it_says_how_long_it_still_takes(nodes, model, clock):
    recorder = Recorder()
    view = nodes.live.LiveView(model.model, recorder, 0)
    view.say("GPU: 3 GB needed")

    def step(*args):
        clock.now += 20.0
        view(*args)

    denoise(model.model, encode_instruction(model.model, "add a red star"), callback=step)
    said = [place["said"] for place in recorder.places]
    assert said[:3] == ["GPU: 3 GB needed"] * 3
    assert recorder.texts[0] == "GPU: 3 GB needed"
    assert said[3] == "about 11 min 00 s left" and "[about 11 min 00 s left]" in recorder.texts[3]
    assert said[-2:] == ["about 20 s left", "GPU: 3 GB needed"]


def test_a_run_says_what_it_costs_and_what_would_be_faster(
    nodes, run_node, encoded, denoised, monkeypatch
):
    said = []
    monkeypatch.setattr(nodes.live.LiveView, "say", lambda self, cost: said.append(cost))
    denoised(encoded())
    monkeypatch.setattr(nodes.denoise, "_LARGE", 0)
    denoised(encoded())
    denoised(encoded(), speed="cached")
    assert all(text.startswith("Memory: ") and " needed (" in text for text in said)
    assert ["With speed cached" in text for text in said] == [False, True, False]


@pytest.mark.parametrize("every, expected", [(0, 0), (1, 36), (5, 8)])
def test_both_modalities_are_seen_to_form(nodes, model, clock, every, expected):
    recorder = Recorder()
    view = nodes.live.LiveView(model.model, recorder, every)
    prompt = encode_instruction(model.model, "add a red star", batch=2)
    trajectory = denoise(model.model, prompt, callback=view)
    assert sum(picture is not None for picture in recorder.pictures) == expected
    assert nodes.live.MASKED_TEXT in recorder.texts[0]
    view.finish(trajectory)
    total = trajectory.total_steps
    assert recorder.steps == [(i + 1, total) for i in range(total)] + [(total, total)]
    assert nodes.live.MASKED_TEXT not in recorder.texts[-1]
    assert (recorder.pictures[-1] is not None) == bool(every)
    check_words(trajectory, recorder.words)


def check_words(trajectory, shown):
    """Each token is masked until its step, new at it, unmasked from then on."""
    assert [done for done, _ in shown] == [*range(1, len(trajectory) + 1), trajectory.total_steps]
    for step, (_, words) in zip(trajectory, shown, strict=False):
        decided, fresh = step.after.text[0] != MASKED, step.text_revealed[0]
        for (text, state), is_decided, is_new in zip(words, decided, fresh, strict=True):
            assert state == ("new" if is_new else "unmasked" if is_decided else "masked")
            assert (text == " ░") == (state == "masked")
    assert {state for _, state in shown[-1][1]} == {"unmasked"}


def test_the_viewer_gets_the_recorded_steps(nodes, encoded, denoised):
    output = denoised(encoded(), batch_size=2)
    (((data,),),) = output.ui.values()
    assert set(output.ui) == {nodes.live.RECORDED_STEPS}
    trajectory, frames = output[1], len(data["steps"])
    assert nodes.live.FEWEST_FRAMES <= frames <= nodes.live.FRAMES
    assert data["steps"] == sorted(data["steps"]) and data["steps"][-1] == data["total"] == 36
    assert len(data["samples"]) == 2
    for row, sample in enumerate(data["samples"]):
        for frame, number in enumerate(data["steps"]):
            decided = [since <= frame for since in sample["since"]]
            assert decided == (trajectory.steps[number - 1].after.text[row] != MASKED).tolist()
        assert len(sample["words"]) == len(sample["since"]) == trajectory.final.text.shape[1]
    json.dumps(data)


def test_their_pictures_are_cells_of_one_temporary_file(encoded, denoised):
    import folder_paths

    (((data,),),) = denoised(encoded()).ui.values()
    sheet = data["samples"][0]["sheet"]
    assert sheet["file"]["type"] == "temp"
    picture = Image.open(Path(folder_paths.get_temp_directory()) / sheet["file"]["filename"])
    rows = -(-len(data["steps"]) // sheet["columns"])
    assert picture.size == (sheet["columns"] * sheet["width"], rows * sheet["height"])
    assert (sheet["width"], sheet["height"]) == (128, 128)


def test_without_previews_only_words_are_kept_and_without_a_record_nothing(encoded, denoised):
    (((data,),),) = denoised(encoded(), preview_every=0).ui.values()
    assert data["samples"][0]["sheet"] is None and len(data["steps"]) == 24
    assert denoised(encoded(), record_steps=0).ui is None


def test_tokens_that_were_given_are_not_new_to_the_viewer(encoded, denoised):
    prompt = encoded()
    tokens = denoised(prompt)[0]
    half = TokenState(tokens.text.clone(), tokens.image)
    half.text[0, ::2] = MASKED
    (((data,),),) = denoised(prompt, tokens=half).ui.values()
    since = data["samples"][0]["since"]
    assert all((frame == -1) == (place % 2 == 1) for place, frame in enumerate(since))


def test_undecided_patches_are_veiled(nodes, model):
    guess = TokenState(torch.zeros(1, 3, dtype=torch.int64), torch.full((1, 2, 2), 5))
    decided = TokenState(guess.text, guess.image.clone())
    decided.image[0, 0, 0] = MASKED
    shown = nodes.live.veiled_picture(model.model, guess, decided)
    plain = nodes.live.veiled_picture(model.model, guess, guess)
    assert shown.size == (64, 64)
    corner = (0, 0, 32, 32)
    assert shown.crop(corner).tobytes() != plain.crop(corner).tobytes()
    assert shown.crop((32, 0, 64, 64)).tobytes() == plain.crop((32, 0, 64, 64)).tobytes()
    assert isinstance(shown, Image.Image)

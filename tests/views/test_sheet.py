import numpy as np
import pytest
import torch
from mmada_parallel.mmp_core import (
    MASKED,
    SamplerSettings,
    TokenState,
    denoise,
    encode_instruction,
    load_checkpoint,
)
from mmada_parallel.views.sheet import Word, beside, contact_sheet
from mmada_parallel.views.trajectory import heated, spread_steps, trajectory_frames, words_of
from PIL import Image


@pytest.fixture(scope="module")
def demo():
    return load_checkpoint("demo", dtype=torch.float32)


@pytest.fixture(scope="module")
def run(demo):
    start = encode_instruction(demo, "draw a red star at row 1 column 1 on white", size=(128, 96))
    return denoise(demo, start, SamplerSettings(joint_guidance=0.0))


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_steps_are_spread_and_end_with_the_last(run, count):
    chosen = spread_steps(run, count)
    assert len(chosen) == min(count, len(run)) and chosen[-1].after is run.final
    indices = [step.index for step in chosen]
    assert indices == sorted(set(indices))


@pytest.mark.parametrize("heat", [False, True])
def test_frames_have_one_size_and_the_sheet_holds_them_all(demo, run, heat):
    frames = trajectory_frames(demo, run, spread_steps(run, 5), side=96, heat=heat)
    assert len(frames) == 5 and len({frame.size for frame in frames}) == 1
    width, height = frames[0].size
    sheet = contact_sheet(frames, 2)
    assert sheet.size == (2 * width, 3 * height)
    assert sheet.crop((width, height, 2 * width, 2 * height)).tobytes() == frames[3].tobytes()
    assert contact_sheet(frames, 9).size == (5 * width, height)


def test_what_is_masked_is_veiled_and_what_is_done_is_not(demo, run):
    first, last = trajectory_frames(demo, run, [run.steps[0], run.steps[-1]], side=96)
    picture = np.asarray(last)[8:104, 8:136]
    assert picture.std() > 10
    assert np.asarray(first)[8:104, 8:136].std() < picture.std()


def test_words_know_what_is_new(demo):
    ids = demo.tokenizer("the red star", add_special_tokens=False)["input_ids"]
    cell = torch.zeros(1, 1, 1, dtype=torch.int64)
    before = TokenState(torch.tensor([[ids[0], MASKED, MASKED]]), cell)
    after = TokenState(torch.tensor([[ids[0], ids[1], MASKED]]), cell)
    assert words_of(demo, after, before) == [
        Word("the"),
        Word("red", new=True),
        Word("░", masked=True),
    ]
    assert [word.new for word in words_of(demo, after)] == [False, False, False]


def test_long_texts_stay_inside_the_frame():
    for side, count in ((256, 30), (256, 170), (96, 400)):
        words = [Word("word" * (1 + i % 5), new=i % 2 == 0) for i in range(count)]
        frame = np.asarray(beside(Image.new("RGB", (side, side)), words, "step 1 of 2"))
        assert (frame[:, -6:] == 255).all() and (frame[-6:] == 255).all()


@pytest.mark.parametrize("size", [(64, 64), (289, 272), (77, 96)])
def test_sides_are_even_as_videos_want_them(size):
    frame = beside(Image.new("RGB", size), [Word("a")], "step 1 of 2")
    assert not frame.width % 2 and not frame.height % 2


def test_confidence_runs_from_violet_to_yellow():
    colours = np.asarray(heated(Image.new("RGB", (2, 1)), torch.tensor([[0.0, 1.0]])))
    assert colours[0, 0, 2] > colours[0, 0, 1] and colours[0, 1, 0] > 2 * colours[0, 1, 2]

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmada_parallel.demo import world
from mmada_parallel.demo.checker import apply_sentence, check, parse_codes
from mmada_parallel.demo.kinds import EDITS
from mmada_parallel.demo.render import render
from mmada_parallel.demo.scenes import random_scene

seeds = st.integers(0, 2**40)


@given(seeds, st.sampled_from(world.GRIDS))
def test_right_answers_are_right(seed, grid):
    task = world.task(seed, grid=grid)
    verdict = check(task, render(task.after), task.sentence)
    assert (verdict.picture, verdict.sentence, verdict.agree, verdict.kept) == (True, True, True, 1)
    assert task.before != task.after


@given(seeds)
def test_copying_the_input_is_wrong_but_keeps_everything(seed):
    task = world.task(seed, kinds=EDITS)
    verdict = check(task, render(task.before), task.sentence)
    assert not verdict.picture and not verdict.agree
    assert verdict.sentence and verdict.kept == 1


@given(seeds, seeds)
def test_sentence_of_another_task_does_not_agree(seed, other):
    task, stranger = world.task(seed), world.task(other)
    said = apply_sentence(stranger.sentence, task.before, (4, 4))
    verdict = check(task, render(task.after), stranger.sentence)
    assert verdict.agree == (said == task.after)


@given(seeds)
def test_pixels_are_read_back_at_any_size(seed):
    scene = random_scene(random.Random(seed), (4, 4))
    picture = render(scene)
    for size in (picture.size, (300, 300), (96, 96)):
        assert parse_codes(picture.resize(size), (4, 4)).tolist() == scene.codes()


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "the red circle at row 9 column 1 goes away .",
        "bananas are green , so the background becomes green .",
        "1 circles go .",
        "the purple star at row 1 column 1 becomes .",
    ],
)
def test_nonsense_describes_nothing(sentence):
    scene = random_scene(random.Random(3), (4, 4))
    assert apply_sentence(sentence, scene, (4, 4)) is None


def test_every_word_is_in_the_vocabulary():
    known = set(world.words())
    for seed in range(3000):
        task = world.task(seed, grid=world.GRIDS[seed % len(world.GRIDS)])
        assert set(f"{task.instruction} {task.sentence}".split()) <= known


def test_every_patch_is_its_own():
    from mmada_parallel.demo.render import patches

    assert len({p.tobytes() for p in patches()}) == len(patches())

"""Tasks with several right answers: each is accepted, and two of them together do not agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmada_parallel.demo import open_tasks, world
from mmada_parallel.demo.checker import apply_sentence, check
from mmada_parallel.demo.render import render
from mmada_parallel.demo.reward import sentences

seeds = st.integers(0, 2**40)


@pytest.mark.parametrize("grid", world.GRIDS)
@pytest.mark.parametrize("seed", range(12))
def test_every_result_is_right(seed, grid):
    task = open_tasks.task(seed, grid=grid)
    assert task.others and task.after not in task.others
    for scene in (task.after, *task.others):
        picture = render(scene)
        (said, *_) = sentences(task, picture)
        verdict = check(task, picture, said)
        assert verdict.picture and verdict.sentence and verdict.agree and verdict.kept == 1


@given(seeds)
def test_two_right_results_do_not_agree(seed):
    task = open_tasks.task(seed)
    verdict = check(task, render(task.others[0]), task.sentence)
    assert verdict.picture and verdict.sentence and not verdict.agree


@given(seeds)
def test_anything_else_is_wrong(seed):
    task = open_tasks.task(seed)
    (cell, item), *_ = sorted(task.after.objects().items())
    spoilt = task.after.with_cells({cell: ("star" if item[0] != "star" else "cross", "red")})
    assert check(task, render(spoilt), task.sentence).picture == (spoilt in task.others)
    if task.before is not None:
        assert not check(task, render(task.before), task.sentence).picture


def test_the_target_is_one_of_the_results_each_as_likely():
    tasks = [open_tasks.task(seed) for seed in range(3000)]
    for task in tasks:
        assert apply_sentence(task.sentence, task.before, task.after.grid) == task.after
    cells = [next(iter(task.after.objects())) for task in tasks if task.kind == "generate"]
    counts = [cells.count((row, column)) for row in range(4) for column in range(4)]
    assert len(cells) / 16 / 2 < min(counts) <= max(counts) < len(cells) / 16 * 2


def test_every_kind_is_drawn_and_every_word_known():
    known, kinds = set(world.words()), set()
    for seed in range(1000):
        task = open_tasks.task(seed)
        kinds.add(task.kind)
        assert set(f"{task.instruction} {task.sentence}".split()) <= known
    assert kinds == set(open_tasks.KINDS)
    assert open_tasks.task(7) == open_tasks.task(7) != open_tasks.task(8)

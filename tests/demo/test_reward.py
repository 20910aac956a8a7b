"""The toy world's exact checker as a reward."""

from itertools import pairwise

import pytest
import torch
from mmada_parallel.demo import world
from mmada_parallel.demo.dataset import cases_of
from mmada_parallel.demo.render import render
from mmada_parallel.demo.reward import CheckerReward, sentences
from mmada_parallel.mmp_core import InputError, load_checkpoint
from mmada_parallel.training.cases import Case, Pair
from PIL import Image

TASKS = [world.task(number) for number in range(200)]


def pair(task, sentence, scene, progress=1.0):
    case = Case("a case", None, task.instruction, None, facts=task)
    text = " ".join(word for word in sentence.split() if word != "░")
    return Pair(case, text, sentence, render(scene), progress)


def score(*arguments):
    return float(CheckerReward()([pair(*arguments)])[0])


def test_every_sentence_of_the_world_is_among_those_its_picture_allows():
    for task in TASKS:
        assert task.sentence in list(sentences(task, render(task.after))), task


def test_right_answers_score_one_and_answers_of_other_tasks_less():
    for task, other in pairwise(TASKS):
        assert score(task, task.sentence, task.after) == 1.0
        if task.sentence != other.sentence:
            assert score(task, other.sentence, task.after) <= 0.5


def test_a_wrong_edit_that_is_described_truly_agrees():
    task = next(t for t in TASKS if t.kind == "remove")
    (cell, item), *_ = task.before.objects().items()
    changed = task.before.with_cells({cell: ("star", "red") if item != ("star", "red") else None})
    said = next(iter(sentences(task, render(changed))))
    assert score(task, said, changed) == 1.0


def test_half_a_text_scores_by_the_words_that_are_decided():
    task = next(t for t in TASKS if t.kind == "add")
    words = task.sentence.split()
    half = " ".join(["░"] * 4 + words[4:])
    assert score(task, half, task.after, 0.5) == 1.0
    wrong = " ".join(["░"] * 4 + ["away"] + words[5:])
    assert score(task, wrong, task.after, 0.5) == pytest.approx(1 - 1 / (len(words) - 4))
    assert score(task, "", task.after, 0.5) == 0.0


def test_ending_the_text_early_does_not_pay():
    task = next(t for t in TASKS if t.kind == "move")
    words = task.sentence.split()
    assert score(task, " ".join(words[:6]), task.after, 0.5) == pytest.approx(6 / len(words))


def test_a_picture_that_no_edit_leads_to_scores_nothing():
    task = next(t for t in TASKS if t.kind == "move")
    mixed = render(task.after)
    mixed.paste(Image.new("RGB", (32, 32), (38, 38, 46)), (0, 0))
    case = Case("a case", None, task.instruction, None, facts=task)
    assert float(CheckerReward()([Pair(case, task.sentence, task.sentence, mixed, 1.0)])) == 0.0


def test_a_case_of_another_world_is_named():
    case = Case("holiday.png", None, "make it night", None)
    with pytest.raises(InputError, match="holiday.png"):
        CheckerReward()([Pair(case, "", "", Image.new("RGB", (32, 32)), 1.0)])


def test_cases_hold_an_undecided_start_and_the_right_answer():
    model = load_checkpoint("demo", dtype=torch.float32)
    case = cases_of(model, [world.task(3)])[0]
    assert case.facts == world.task(3)
    assert bool((case.prompt.initial.text == -1).all() and (case.prompt.initial.image == -1).all())
    assert case.target.image[0].tolist() == case.facts.after.codes()

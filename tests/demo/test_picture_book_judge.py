"""The picture book's judge: what it reads, what it refuses to read, and its reward."""

import random

import numpy as np
import pytest
from mmada_parallel.benchmarks.picture_book import measured
from mmada_parallel.demo.picture_book import judge
from mmada_parallel.demo.picture_book.edits import EDITS
from mmada_parallel.demo.picture_book.scenes import PATCH, Scene, Slot, Thing
from mmada_parallel.demo.picture_book.tasks import Task, random_scene, sentence, task
from mmada_parallel.demo.register import register
from mmada_parallel.demo.reward import CheckerReward
from mmada_parallel.training.cases import Case, Pair
from mmada_parallel.training.data.registry import GENERATED
from PIL import Image

HOUSE, TREE = Thing("house", "red", "big"), Thing("tree", "green", "big")
LEFT, RIGHT = Slot("ground", 1), Slot("ground", 2)
BEFORE = Scene("day", "meadow").having({LEFT: HOUSE, RIGHT: TREE})
"""All tests are on one landscape, so that few drawings have to be made."""


def recolouring(colour="blue"):
    (edit,) = (
        e
        for e in EDITS["recolour"].of(BEFORE)
        if e.clause(BEFORE).endswith(colour) and e.slot == LEFT
    )
    after = edit.apply(BEFORE)
    return Task("recolour", f"paint the house {colour}", BEFORE, sentence(BEFORE, edit), after)


def reward(made, text, scene, progress=1.0):
    case = Case("a case", None, made.instruction, None, facts=made)
    words = text.replace("░", "")
    return float(CheckerReward()([Pair(case, words, text, scene.picture(), progress)])[0])


def test_it_reads_spoilt_pictures_and_refuses_patchwork():
    shares = measured(8, 0, {}, landscapes=1)
    refused = shares.pop("one patch of another thing is refused")
    assert refused >= 0.9 and set(shares.values()) == {1.0}


def test_a_right_answer_is_right_in_all():
    made = recolouring()
    verdict = made.check(made.after.picture(), made.sentence)
    assert verdict.picture and verdict.sentence and verdict.agree
    assert verdict.kept == 1 and verdict.spoilt == ()


def test_sentences_may_be_written_as_people_do():
    made = recolouring()
    said = made.sentence.replace(" .", ".").replace(" ,", ",").replace("there is", "There is")
    assert said != made.sentence and made.check(made.after.picture(), said).sentence


def test_what_was_spoilt_is_said():
    made = recolouring()
    shown = made.after.having({RIGHT: Thing("tree", "orange", "big")})
    verdict = made.check(shown.picture(), made.sentence)
    assert not verdict.picture and verdict.sentence and not verdict.agree and verdict.kept < 1
    assert verdict.spoilt == ("a big green tree on the right became a big orange tree",)


def test_a_picture_and_a_text_that_are_wrong_alike_agree():
    made, other = recolouring("blue"), recolouring("purple")
    verdict = made.check(other.after.picture(), other.sentence)
    assert verdict.agree and not verdict.picture and not verdict.sentence and verdict.kept == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: text.replace("a red house", "a red car"),
        lambda text: text.replace("the tree stays", "nothing else stays"),
        lambda text: text.replace("the house becomes", "cherries are red , so the house becomes"),
        lambda text: text.replace("by day", "at night"),
    ],
)
def test_every_part_of_a_sentence_must_be_true(wrong):
    made = recolouring()
    said = wrong(made.sentence)
    assert said != made.sentence
    verdict = made.check(made.after.picture(), said)
    assert verdict.picture and not verdict.sentence and not verdict.agree


def test_grain_shows_no_scene():
    pixels = np.asarray(BEFORE.picture()).copy()
    pixels[:, :192] = np.random.default_rng(0).integers(0, 256, (256, 192, 3), dtype=np.uint8)
    reading = judge.read(Image.fromarray(pixels))
    assert reading.scene is None and not reading.landscape and len(reading.unclear) == 6


def test_a_landscape_that_is_painted_over_is_noticed():
    pixels = np.asarray(BEFORE.picture()).copy()
    pixels[-PATCH:, :PATCH] = (200, 30, 30)
    made = recolouring()
    verdict = made.check(Image.fromarray(pixels), made.sentence)
    assert verdict.spoilt == ("the landscape is unclear",) and verdict.kept < 1


def test_the_reward_is_highest_where_text_and_picture_agree():
    made, other = recolouring("blue"), recolouring("purple")
    words = made.sentence.split()
    half = " ".join(["░"] * 8 + words[8:])
    assert reward(made, made.sentence, made.after) == 1
    assert reward(made, half, made.after, 0.5) == 1
    assert reward(made, made.sentence, other.after) < 0.5
    assert reward(made, half, other.after, 0.5) < 1


def test_copying_the_input_is_never_right():
    scene = random_scene(random.Random(0))
    for kind in EDITS.values():
        for edit in list(kind.of(scene))[:20]:
            assert edit.apply(scene) != scene


def test_the_world_is_a_dataset_of_tasks_that_its_judge_can_judge():
    register()
    book = GENERATED["picture-book"]
    items = list(book.make(3))
    assert [item.facts for item in items] == [task(seed) for seed in range(3)]
    assert items[0].target.size == (256, 256)

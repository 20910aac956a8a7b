"""The picture book: its scenes, drawings, edits and words."""

import hashlib
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from mmada_parallel.demo.picture_book import drawing, scenes, train
from mmada_parallel.demo.picture_book.edits import EDITS
from mmada_parallel.demo.picture_book.scenes import (
    CONTENTS,
    GROUNDS,
    KINDS,
    SLOTS,
    TIMES,
    Scene,
    Slot,
    Thing,
)
from mmada_parallel.demo.picture_book.tasks import (
    DRAW,
    MOST_THINGS,
    combination,
    is_held_out,
    sentences,
    task,
    words,
)
from mmada_parallel.demo.picture_book.words import staying
from mmada_parallel.demo.train import transformer_run
from mmada_parallel.mmp_core.checkpoint.load import DEMO, PICTURE_BOOK
from safetensors.torch import load_file

THINGS = [thing for things in CONTENTS.values() for thing in things]
HOUSE, CAT = Thing("house", "red", "big"), Thing("cat", "blue", "small")


@pytest.fixture(scope="module")
def tasks():
    return [task(seed, held_out=held_out) for seed in range(150) for held_out in (False, True)]


def placed(*things, time="day", ground="meadow"):
    scene = Scene(time, ground)
    for thing in things:
        scene = scene.having({scene.empty_slots(thing.layer)[0]: thing})
    return scene


def test_a_task_is_the_same_on_every_machine():
    made = "\n".join(repr(task(seed)) for seed in range(40))
    assert hashlib.sha256(made.encode()).hexdigest()[:16] == "41afe8af13f5d382"


def test_a_picture_is_the_same_each_time():
    first = drawing.paint(placed(HOUSE, CAT))
    drawing.sprite.cache_clear()
    assert (drawing.paint(placed(HOUSE, CAT)) == first).all()


def test_every_patch_of_every_thing_has_a_code_of_its_own():
    codes = [code for thing in THINGS for code in scenes.thing_codes(thing).ravel() if code >= 0]
    landscapes = {
        code for t in TIMES for g in GROUNDS for row in Scene(t, g).codes() for code in row
    }
    assert sorted(landscapes | set(codes)) == list(range(scenes.code_count()))
    assert len(codes) + len(landscapes) == scenes.code_count()


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_is_drawn_within_the_patches_of_its_codes(kind):
    """In any light and on any ground, so that codes tell the picture."""
    for thing in [each for each in THINGS if each.kind == kind][:2]:
        covered = np.kron(drawing.footprint(kind, thing.size), np.ones((32, 32)))
        for time, ground in zip((*TIMES, "day"), GROUNDS, strict=True):
            alpha = drawing.sprite(thing, ground, time)[..., 3]
            assert alpha.max() == 1 and not (alpha * (1 - covered) > 0.02).any()


def test_things_of_every_colour_and_size_look_different():
    pictures = [drawing.sprite(thing, "meadow", "night") for thing in THINGS if thing.kind == "car"]
    gaps = [abs(one - other)[..., :3].mean() for one, other in pairwise(pictures)]
    assert len(pictures) == 12 and min(gaps) > 2


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_changes_the_scene_and_says_so_in_its_own_words(name):
    tree, kite = Thing("tree", "green", "big"), Thing("kite", "red", "small")
    scene = placed(HOUSE, CAT, tree) if name == "swap" else placed(CAT, tree, kite)
    edits = list(EDITS[name].of(scene))
    results = {edit.apply(scene) for edit in edits}
    assert edits and scene not in results
    assert len(results) == len({edit.clause(scene) for edit in edits}) == len(edits)


def test_a_sentence_is_true_of_its_own_result_only(tasks):
    for made in tasks:
        assert made.sentence in set(sentences(made.before, made.after))
        if made.before:
            ground = next(g for g in GROUNDS if g not in (made.before.ground, made.after.ground))
            other = replace(made.after, ground=ground)
            assert made.sentence not in set(sentences(made.before, other))


def test_tasks_are_of_all_kinds_and_give_reasons(tasks):
    assert {made.kind for made in tasks} == {*EDITS, DRAW}
    assert sum(" , so " in made.sentence for made in tasks) > 40
    assert all(len(made.after.placed()) <= MOST_THINGS for made in tasks)


def test_held_out_combinations_are_never_trained_on(tasks):
    apart = {False: set(), True: set()}
    for made in tasks:
        apart[is_held_out(made)].add(combination(made))
    assert apart[True] and apart[False] and not apart[True] & apart[False]


def test_the_vocabulary_covers_all_that_is_said_and_nothing_that_is_not(tasks):
    said = set(" ".join(f"{made.instruction} {made.sentence}" for made in tasks).split())
    assert said <= set(words())
    assert not {"dragon", "castle", "pink", "moo"} & set(words())


def test_at_night_the_sun_is_the_moon():
    sun = Thing("sun", "", "big")
    day, night = placed(sun, HOUSE), placed(sun, HOUSE, time="night")
    assert day.codes()[0][:2] == night.codes()[0][:2]
    (said, *_) = sentences(day, night)
    assert "it becomes night and the sun becomes the moon . the house stays ." in said
    assert staying(night, night) == "the house and the moon stay ."


@pytest.mark.parametrize(
    "asked, reason",
    [
        ("make the smallest thing red", "the cat is the smallest"),
        ("paint the cat like the house", "the house is red"),
        ("paint the thing that meows red", "a cat meows"),
        ("make the cat the colour of cherries", "cherries are red"),
    ],
)
def test_an_instruction_that_needs_a_thought_gets_its_reason(asked, reason):
    scene = placed(HOUSE, CAT)
    recolour = EDITS["recolour"]
    (edit,) = (e for e in recolour.of(scene) if e.clause(scene) == "the cat becomes red")
    assert (asked, reason) in set(edit.asked(scene))


def test_a_reason_that_does_not_hold_is_not_offered():
    scene = placed(HOUSE, Thing("cat", "blue", "big"))
    (edit,) = (e for e in EDITS["recolour"].of(scene) if e.clause(scene) == "the cat becomes green")
    said = " ".join(f"{asked} {reason}" for asked, reason in edit.asked(scene))
    assert not re.search("biggest|smallest|like the house|orange", said)


def test_a_slot_holds_things_of_its_layer_only():
    for made in (task(seed) for seed in range(60)):
        assert all(thing.layer == slot.layer for slot, thing in made.after.placed().items())
    assert len(SLOTS) == 8 and Slot("sky", 3) in SLOTS


def test_training_begins_with_the_layers_of_the_toy(tmp_path):
    run = transformer_run(tmp_path, train.CPU, "cpu", PICTURE_BOOK, recipe=train.recipe())
    toy, begun = load_file(DEMO / "model.safetensors"), run.policy.state_dict()
    blocks = [name for name in begun if ".blocks." in name]
    assert blocks and all(torch.equal(begun[n], toy[n].to(begun[n].dtype)) for n in blocks)

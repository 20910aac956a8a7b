"""``mmada-parallel describe``, and tasks of ``edit``, on a checkpoint of Lumina-DiMOO."""

import json

import pytest
from mmada_parallel.tests.nodes.untrained import write_untrained
from PIL import Image


@pytest.fixture(scope="module")
def lumina(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d") / "toy"
    return write_untrained(folder, mmada_parallel_family="D")


def test_describe_prints_words_alone(run, scene, lumina, tmp_path):
    where = ("--model", lumina, "--seed", 3, "--text-length", 8, "--text-steps", 4, "--quiet")
    code, out, err = run("describe", scene, "what is there", *where, "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert (answer["image"], answer["seed"]) == (None, 3)
    code, out, _ = run("describe", scene, *where, "--text-out", tmp_path / "words.txt")
    assert code == 0 and (tmp_path / "words.txt").read_text() == out
    assert not list(tmp_path.glob("*.png")) or [p.name for p in tmp_path.glob("*.png")] == [
        "scene.png"
    ]


def test_edit_takes_a_task_and_a_second_picture(run, scene, lumina, tmp_path):
    options = ("--model", lumina, "--image-steps", 2, "--out", tmp_path / "out.png", "--json")
    code, out, _ = run("edit", scene, "", "--reference", scene, *options)
    assert (code, json.loads(out)["text"]) == (0, "")
    assert Image.open(tmp_path / "out.png").size == (128, 128)
    code, _, err = run("edit", scene, "red", "--task", "draw", *options)
    assert code == 2 and "was not trained on the task 'draw'; it knows generate, edit" in err
    code, _, err = run("edit", scene, "depth map", "--task", "dense_prediction", *options)
    assert code == 0, err
    code, out, _ = run("generate", "red", *options)
    assert (code, json.loads(out)["text"]) == (0, "")


def test_other_families_draw_always(run, scene, checkpoint):
    code, _, err = run("describe", scene, "what is there", "--model", checkpoint)
    assert code == 2 and "MMaDA-Parallel-A was not trained on the task 'describe'" in err
    code, _, err = run("edit", scene, "", "--reference", scene, "--model", checkpoint)
    assert code == 2 and "MMaDA-Parallel-A takes one picture" in err

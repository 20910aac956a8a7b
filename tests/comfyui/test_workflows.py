"""Every shipped workflow runs in the real ComfyUI as shipped, and behaves while it runs."""

import json
from itertools import pairwise

import numpy as np
import pytest
from mmada_parallel.demo.checker import parse_codes
from mmada_parallel.demo.photo import PAINTING
from mmada_parallel.demo.picture_book import judge, tasks
from mmada_parallel.tests.messages import progress_steps
from mmada_parallel.tests.workflow_api import WORKFLOWS, to_api
from PIL import Image

INPAINTED = tasks.task(5, held_out=True, kinds=("replace",))
DENOISE, SCENE = "MMaDAParallelDenoise", "MMaDAParallelDemoScene"
LIVE = (DENOISE, "MMaDAParallelParaRLFinetune")
"""Nodes that show what they do while they run."""
TRAINING = ("Finetune by ParaRL on a folder", "Before and after")
MINUTES = ("Teach it something new",)
"""Those that take so long that they run for those who ask for it."""
WAITS = ("ParaRL with your votes",)
"""Run by tests/browser/test_votes.py, which has somebody to vote."""
PICKS = PICK, TRAIN = "Pick what you like", "Train on your picks"
"""Run together, by test_what_is_picked_is_trained_on; as shipped by tests/browser/test_picks.py."""
DESCRIBES = ("Describe a picture",)
DRAWS = ("Text to image at any size", "Style from a second picture")
"""Those that answer with a text alone, and with a picture alone."""
LISTS = {"Several instructions": 3}
"""How often nodes run in those that hand on a list."""


def marks_of(name):
    marks = [pytest.mark.slow] if name in (*TRAINING, *MINUTES) else []
    return [*marks, *([pytest.mark.exhaustive] if name in MINUTES else [])]


ALL = [
    pytest.param(path, marks=marks_of(path.stem))
    for path in WORKFLOWS
    if path.stem not in (*WAITS, *PICKS)
]
HOSTS = ["current", pytest.param("oldest", marks=pytest.mark.exhaustive)]


def each_workflow(test):
    """In the oldest ComfyUI those of the other tests are enough unless all are asked for."""
    test = pytest.mark.parametrize("comfy", HOSTS, indirect=True)(test)
    return pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)(test)


BASIC = [path for path in WORKFLOWS if path.stem in ("Edit an image", "Generate with thinking")]
each_basic_workflow = pytest.mark.parametrize("path", BASIC, ids=lambda path: path.stem)


def prompt_of(path, object_info, reseed=0):
    prompt = to_api(json.loads(path.read_text()), object_info)
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if "seed" in name and isinstance(value, int):
                node["inputs"][name] = value + reseed
    return prompt


def ids_of(prompt, class_type):
    return [i for i, node in prompt.items() if node["class_type"] == class_type]


@pytest.fixture(scope="session")
def runs(comfy, object_info):
    """Each workflow run twice, the first time by anyone: path -> (prompt, first, second)."""
    done = {}

    def run(path):
        if path not in done:
            prompt = prompt_of(path, object_info)
            done[path] = prompt, comfy.run(prompt), comfy.run(prompt)
        return done[path]

    return run


def test_the_promised_workflows_are_shipped():
    assert len(BASIC) == 2
    assert {path.stem for path in WORKFLOWS} >= {
        "Watch it think",
        "Inpaint",
        "Outpaint",
        "Edit a large photo",
        "Inpaint part of a large photo",
        "Fix the plan and redraw",
        "Explain this edit",
        "Parallel against sequential",
        "Best of N",
        "Vary a result",
        "Several instructions",
        "Edit a page of the picture book",
        "Stop, keep and redraw",
        *TRAINING,
        *MINUTES,
        *WAITS,
        *PICKS,
        *DESCRIBES,
        *DRAWS,
    }


@each_workflow
def test_it_gives_a_picture_and_a_text(runs, path):
    _, first, _ = runs(path)
    assert first.status == "success", first.error
    assert first.images
    assert all(lo < hi for image in first.images for lo, hi in image.convert("RGB").getextrema())
    assert any(text.strip() for text in first.texts) or path.stem in DRAWS


def named(name):
    return next(path for path in WORKFLOWS if path.stem == name)


def pictures_of(comfy, run, *class_types):
    """The pictures that these nodes of a run show, as arrays."""
    prompt, first, _ = run
    shown = first.history["outputs"]
    return [
        np.asarray(comfy.view(file).convert("RGB"))
        for class_type in class_types
        for node in ids_of(prompt, class_type)
        for file in shown[node]["images"]
    ]


def changed_cells(before, after, grid=(4, 4)):
    codes = [parse_codes(Image.fromarray(picture), grid) for picture in (before, after)]
    return [tuple(cell) for cell in np.argwhere(codes[0] != codes[1])]


def test_what_is_given_is_kept(comfy, runs):
    before, wider = pictures_of(comfy, runs(named("Outpaint")), SCENE, "SaveImage")
    assert wider.shape == (128, 160, 3)
    assert np.array_equal(wider[:, :120], before[:, :120])  # but for the soft edge
    _, redrawn, _ = runs(named("Fix the plan and redraw"))
    own = "the red circle at row 1 column 4 becomes a green star ."
    assert any(own in text for text in redrawn.texts)
    before, after = pictures_of(comfy, runs(named("Inpaint")), SCENE, "SaveImage")
    assert [judge.read(Image.fromarray(shown)).scene for shown in (before, after)] == [
        INPAINTED.before,
        INPAINTED.after,
    ]
    changed = (before != after).any(2)
    assert changed[128:224, 64:128].mean() > 0.3
    changed[116:236, 52:140] = False  # the mask and its soft edge
    assert not changed.any()


def test_a_large_photo_is_kept_but_for_the_edit(comfy, runs):
    before, after = pictures_of(comfy, runs(named("Edit a large photo")), SCENE, "SaveImage")
    assert before.shape == after.shape == (1024, 1024, 3)
    assert changed_cells(before, after) == [(1, 1)]
    assert (before == after).all(2).mean() > 0.85
    name = "Inpaint part of a large photo"
    before, after = pictures_of(comfy, runs(named(name)), SCENE, "SaveImage")
    changed = (before != after).any(2)
    assert before.shape == (1024, 1536, 3) and changed[384:512, 704:832].mean() > 0.2
    changed[372:524, 692:844] = False  # the mask and its soft edge
    assert not changed.any()
    left, top, right, bottom = PAINTING
    parts = (picture[top:bottom, left:right] for picture in (before, after))
    assert changed_cells(*parts) == [(1, 2)]


def test_what_is_picked_is_trained_on(comfy, object_info):
    """The second run of a batch keeps the pick. Trained for a step, to be quick."""
    pick = prompt_of(named(PICK), object_info)
    first, second = comfy.run(pick), comfy.run(pick)
    assert any(text.startswith("Not kept yet.") for text in first.texts)
    assert any(
        text == "Kept: sample 0 is the best of 4. my-picks now holds 1 pick."
        for text in second.texts
    )
    train = prompt_of(named(TRAIN), object_info)
    (node,) = ids_of(train, "MMaDAParallelPreferenceFinetune")
    train[node]["inputs"] |= {"steps": 1, "batch_size": 1, "masks": 1, "preview_every": 0}
    trained = comfy.run(train)
    assert trained.status == "success", trained.error
    assert len(trained.texts) >= 3


@each_workflow
def test_denoising_and_training_are_visible_while_they_run(runs, path):
    prompt, first, _ = runs(path)
    live = [node for kind in LIVE for node in ids_of(prompt, kind)]
    assert live
    for node in live:
        assert first.steps(node), f"{node} reported no step"
        values = [value for value, _ in first.steps(node)]
        restarts = sum(after < before for before, after in pairwise(values))
        assert restarts == LISTS.get(path.stem, 1) - 1
        assert len(set(values)) >= min(3, first.steps(node)[-1][1])
        assert first.steps(node)[-1][0] == first.steps(node)[-1][1]
        assert first.previews(node) or path.stem in DESCRIBES
        assert first.live_texts(node)
        assert not any("<" in text.replace("<br>", "") for text in first.live_texts(node))
    changing = any(len(set(first.live_texts(node))) > 1 for node in live)
    assert changing or path.stem in DRAWS


@each_workflow
def test_the_same_prompt_again_is_cached(runs, path):
    prompt, first, second = runs(path)
    assert second.status == "success", second.error
    assert second.started == []
    assert second.cached == set(prompt)
    again, before = second.history["outputs"], first.history["outputs"]
    output_nodes = {"MMaDAParallelDecodeText", "SaveImage"}
    assert {n for n in prompt if prompt[n]["class_type"] in output_nodes} <= again.keys()
    assert all(out == before[node] for node, out in again.items())


@each_basic_workflow
def test_a_seed_decides_the_result_not_the_moment(comfy, object_info, runs, path):
    _, first, _ = runs(path)
    assert comfy.run(prompt_of(path, object_info, reseed=1)).status == "success"
    comfy.post("/free", {"unload_models": True, "free_memory": True})
    again = comfy.run(prompt_of(path, object_info))
    assert again.status == "success", again.error
    assert [i.tobytes() for i in again.images] == [i.tobytes() for i in first.images]
    assert again.texts == first.texts


@each_basic_workflow
def test_interrupt_stops_within_a_step_and_the_next_run_works(comfy, object_info, path):
    prompt = prompt_of(path, object_info, reseed=1000)
    (node, *_) = ids_of(prompt, DENOISE)
    prompt_id = comfy.queue(prompt)
    comfy.wait(lambda m: any(0 < value < total for value, total in progress_steps([m], node)))
    comfy.interrupt(prompt_id)
    before = len(progress_steps(comfy.messages, node))
    result = comfy.finish(prompt_id)
    assert result.status == "interrupted", result.error
    assert result.of("execution_interrupted")[0].data["node_id"] == node
    # One for the step that was under way, one that the reader had not yet taken in.
    assert len(result.steps(node)) - before <= 2
    after = comfy.run(prompt)
    assert after.status == "success", after.error


def test_a_broken_checkpoint_is_explained_in_one_sentence(comfy, object_info):
    folder = comfy.base / "models" / "mmada_parallel" / "empty"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    prompt = prompt_of(WORKFLOWS[0], object_info)
    for node in ids_of(prompt, "MMaDAParallelLoader"):
        inputs = prompt[node]["inputs"]
        inputs.update({name: "empty" for name, value in inputs.items() if value == "demo"})
    result = comfy.run(prompt)
    (failure,) = result.of("execution_error")
    message = failure.data["exception_message"].strip()
    assert failure.data["node_type"] == "MMaDAParallelLoader"
    assert "empty" in message and "\n" not in message


def test_nothing_of_all_this_raised_in_the_server(comfy, object_info):
    """After a clean run of a workflow the log has no traceback that passes through the pack."""
    start = len(comfy.log())
    result = comfy.run(prompt_of(BASIC[0], object_info, reseed=2000))
    assert result.status == "success", result.error
    assert "Traceback" not in comfy.log(start)

"""Workflow files and prompts that landed versions saved still load, widget by widget, and give
what they gave then."""

import json

import numpy as np
import pytest
from mmada_parallel.tests.comfyui import frozen
from mmada_parallel.tests.hosts import PACK_ROOT
from mmada_parallel.tests.workflow_api import NOTES, to_api

FOLDER = PACK_ROOT / "tests" / "comfyui" / "old_workflows"
OLD = sorted(FOLDER.glob("*/*.json"))
PROMPTS = {
    (file.stem, name): before
    for file in sorted(FOLDER.glob("*.json"))
    if file.name != "widgets.json"
    for name, before in json.loads(file.read_text()).items()
}
UNFROZEN = {
    "MMaDAParallelCollectDataset",
    "MMaDAParallelCompareAdapters",
    "MMaDAParallelConvertCheckpoint",
    "MMaDAParallelPreferenceFinetune",
}
"""Nodes that write files or need those of a run: tests/mmp_core/old_files and
tests/training/test_old_runs.py have theirs."""
SLOW = {
    path
    for path in OLD
    if any(kind in path.read_text() for kind in frozen.TRAINING)
    or path.stem in ("Denoise in every way", "Parallel against sequential")
}
QUICK = {
    ("190929a", "Describe a picture"),
    ("190929a", "Inpaint"),
    ("190929a", "Watch it think"),
    ("af58ac0", "Edit an image"),
    ("af58ac0", "Style from a second picture"),
    ("af58ac0", "Put back what a mask selects"),
    ("31f73b3", "Outpaint"),
    ("31f73b3", "Text to image at any size"),
    ("522b787", "Best of N"),
    ("522b787", "Put back what a mask selects"),
    ("522b787", "Several instructions"),
    ("522b787", "Stop, keep and redraw"),
    ("522b787", "Vary a result"),
    ("522b787", "Vary several instructions"),
}
"""Prompts that together have every node and take seconds."""
EXHAUSTIVE = (pytest.mark.slow, pytest.mark.exhaustive)
hosts = pytest.mark.parametrize(
    "comfy", ["current", pytest.param("oldest", marks=EXHAUSTIVE)], indirect=True
)


def kept(path):
    return json.loads((path.parent / "frozen" / path.name).read_text())


@pytest.fixture
def provided(comfy):
    frozen.provide(comfy)
    return comfy


def case(path, marks=()):
    return pytest.param(path, id=f"{path.parent.name}-{path.stem}", marks=marks)


@hosts
def test_every_node_of_the_pack_is_in_an_old_workflow(comfy, object_info):
    pack = {name for name in object_info if name.startswith("MMaDAParallel")}
    used = {node["type"] for path in OLD for node in json.loads(path.read_text())["nodes"]}
    used |= {node["class_type"] for key in QUICK for node in PROMPTS[key]["inputs"].values()}
    assert pack - used == UNFROZEN


@hosts
@pytest.mark.parametrize("path", [case(path) for path in OLD])
def test_saved_widgets_and_wires_still_fit(comfy, object_info, path):
    workflow = json.loads(path.read_text())
    prompt, before = to_api(workflow, object_info), kept(path)["inputs"]
    assert prompt.keys() == before.keys()
    for key, node in before.items():
        assert prompt[key]["class_type"] == node["class_type"]
        assert node["inputs"].items() <= prompt[key]["inputs"].items()
        groups = object_info[node["class_type"]]["input"]
        appended = prompt[key]["inputs"].keys() - node["inputs"].keys()
        declared = groups.get("required", {}) | groups.get("optional", {})
        assert all("default" in declared[name][1] for name in appended), appended
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES}
    for _, source, slot, target, place, kind in workflow["links"]:
        assert object_info[nodes[source]["type"]]["output"][slot] == kind
        name = nodes[target]["inputs"][place]["name"]
        groups = object_info[nodes[target]["type"]]["input"]
        assert name in groups.get("required", {}) | groups.get("optional", {})


def decided_alike(now, before):
    """Equal nested lists, but for what is null in ``before``: filled at random without the seed."""
    now, before = (np.array(values, dtype=float) for values in (now, before))
    return now.shape == before.shape and ((now == before) | np.isnan(before)).all()


def sheet(inputs, key):
    """Whether node ``key`` shows a sheet of the steps, which is a drawing."""
    (source, _) = inputs[key]["inputs"]["images"]
    return inputs[source]["class_type"] == "MMaDAParallelTrajectorySheet"


@hosts
@pytest.mark.parametrize("path", [case(p, EXHAUSTIVE if p in SLOW else ()) for p in OLD])
def test_it_gives_the_same(provided, path):
    workflow = json.loads(path.read_text())
    after = frozen.outcome(provided, provided.object_info(), workflow, path.stem)
    assert_same(after, kept(path))


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, id="-".join(key), marks=() if key in QUICK else EXHAUSTIVE)
        for key in PROMPTS
    ],
)
@hosts
def test_a_prompt_as_it_was_queued_gives_the_same(provided, object_info, key):
    """In API form, without the inputs that came since."""
    before = PROMPTS[key]
    after = frozen.outcome_of(provided, object_info, before["inputs"], " ".join(key))
    assert_same(after, before)


def assert_same(after, before):
    if "training" in before:
        assert after["training"] == before["training"]
        return
    assert after["tokens"].keys() == before["tokens"].keys()
    for key, tokens in before["tokens"].items():
        for name, values in tokens.items():
            assert decided_alike(after["tokens"][key][name], values), (key, name)
    assert after["texts"] == before["texts"]
    assert after["pictures"].keys() == before["pictures"].keys()
    for key, pictures in before["pictures"].items():
        assert [p["size"] for p in after["pictures"][key]] == [p["size"] for p in pictures]
        for picture, now in zip(pictures, after["pictures"][key], strict=True):
            # Rounding of decoded floats to 8 bits may fall otherwise on another processor. On
            # sheets, masked words were dots, and are blocks since 91b994f, seen at any size.
            off = 8 if sheet(after["inputs"], key) else 1.01
            assert np.allclose(now["colours"], picture["colours"], rtol=0, atol=off)

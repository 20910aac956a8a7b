"""Picking in the page, and training on the picks: the two workflows as they are shipped."""

import json

import pytest
from mmada_parallel.tests.browser.conftest import serve_page
from mmada_parallel.tests.front_ends import NEWEST
from mmada_parallel.tests.workflow_api import WORKFLOWS

PICK, TRAIN = ("Pick what you like", "Train on your picks")
ASKED = [
    f"draw a {shape} on {ground}"
    for shape in ("circle", "square")
    for ground in ("white", "black", "grey")
]
SET = """([type, name, value]) => {
    const node = app.graph.nodes.find((one) => one.type === 'MMaDAParallel' + type)
    node.widgets.find((one) => one.name === name).value = value
}"""
SHOWN = """(type) => app.graph.nodes.filter((one) => one.type === 'MMaDAParallel' + type)
    .map((one) => one.widgets.find((each) => each.name === 'shown_text').value)"""


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    yield from serve_page("current", NEWEST, tmp_path_factory)


def opened(comfy_page, name):
    path = next(path for path in WORKFLOWS if path.stem == name)
    comfy_page.load(json.loads(path.read_text()), name)
    comfy_page.screenshot(f"{name}-opened")
    assert comfy_page.missing_nodes() == comfy_page.complaints() == []


def queued(comfy_page):
    comfy_page.queue()
    assert comfy_page.wait_for_end(1200) == "execution_success"
    assert comfy_page.complaints() == comfy_page.script_errors == []


def picked(comfy_page, name):
    """Run twice, the second time with a red answer, if there is one among others; all texts."""
    page = comfy_page.page
    queued(comfy_page)
    assert page.evaluate(SHOWN, "PickSample")[0].startswith("Not kept yet.")
    answers = page.evaluate(SHOWN, "DecodeText")[0].split("\n\n")
    red = ["red" in answer.split()[:2] for answer in answers]
    if any(red) and not all(red):
        page.evaluate(SET, ["PickSample", "index", red.index(True)])
        queued(comfy_page)
        assert page.evaluate(SHOWN, "PickSample")[0].startswith("Kept: sample ")
        comfy_page.screenshot(f"{name}-kept")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_red_is_picked_and_learnt(comfy_page):
    page = comfy_page.page
    comfy_page.open()
    opened(comfy_page, PICK)
    picked(comfy_page, PICK)
    for seed, instruction in enumerate(ASKED, start=10):
        page.evaluate(SET, ["EncodeInstruction", "instruction", instruction])
        page.evaluate(SET, ["Denoise", "seed", seed])
        picked(comfy_page, PICK)
    folder = comfy_page.server.base / "output" / "mmada_parallel" / "preferences" / "my-picks"
    assert len(list(folder.iterdir())) >= 3
    opened(comfy_page, TRAIN)
    queued(comfy_page)
    comfy_page.screenshot(f"{TRAIN}-done")
    (said,) = page.evaluate(SHOWN, "PreferenceFinetune")
    assert "12 of 12" in said or "step 12" in said.lower()
    before, after = (text.count("red") for text in page.evaluate(SHOWN, "DecodeText"))
    assert after > before

"""The blueprint of one node that edits, and what templates show in the page's app mode."""

import json

import pytest
from mmada_parallel.tests.front_ends import NEWEST
from mmada_parallel.tests.hosts import PACK_ROOT

from .conftest import serve_page
from .test_finding import RESULTS

NAME = "Edit with MMaDA-Parallel"
TEMPLATE = PACK_ROOT / "workflows" / "Edit an image.json"
BUILD = """() => {
    const [edit] = app.graph.nodes
    const add = (type, x) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, 120]
        app.graph.add(node)
        return node
    }
    add('MMaDAParallelDemoScene', -300).connect(0, edit, 0)
    edit.connect(0, add('PreviewImage', 800), 0)
    edit.connect(1, add('PreviewAny', 1200), 0)
}"""
PROMOTED = "() => app.graph.nodes[0].widgets.map(({ name, label }) => label ?? name)"
SET = """([name, value]) => {
    const widget = app.graph.nodes[0].widgets.find((one) => (one.label ?? one.name).includes(name))
    widget.value = value
}"""


@pytest.fixture(scope="module", params=[None, pytest.param(NEWEST, marks=pytest.mark.exhaustive)])
def comfy(request, tmp_path_factory):
    yield from serve_page("current", request.param, tmp_path_factory)


@pytest.mark.parametrize("vue", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_the_blueprint_is_listed_and_edits(comfy_page, vue):
    page = comfy_page.page
    entries = comfy_page.server.get("/global_subgraphs")
    (entry,) = [key for key, one in entries.items() if one["name"] == NAME]
    assert entries[entry]["source"] == "custom_node"
    data = comfy_page.server.get(f"/global_subgraphs/{entry}")["data"]
    comfy_page.open(vue=vue)
    comfy_page.run_command("Workspace.SearchBox.Toggle")
    page.keyboard.type("edit with")
    page.wait_for_timeout(1200)
    assert any(NAME in result for result in page.evaluate(RESULTS))
    page.keyboard.press("Escape")
    comfy_page.load(json.loads(data), "blueprint")
    assert comfy_page.missing_nodes() == []
    assert page.evaluate(PROMOTED) == ["checkpoint", "instruction", "seed", "profile"]
    page.evaluate(BUILD)
    page.evaluate(SET, ["instruction", "make the background green"])
    page.wait_for_timeout(500)
    (asked,) = [
        node["inputs"]["instruction"]
        for node in comfy_page.api_prompt().values()
        if node["class_type"] == "MMaDAParallelEncodeInstruction"
    ]
    assert asked == "make the background green"
    comfy_page.queue()
    assert comfy_page.wait_for_end() == "execution_success"
    renderer = "vue" if vue else "canvas"
    comfy_page.screenshot(f"blueprint-{renderer}")
    assert comfy_page.script_errors == []


@pytest.mark.exhaustive
def test_a_template_opens_in_app_mode_with_what_matters(comfy_page):
    comfy_page.open(vue=True)
    comfy_page.load(json.loads(TEMPLATE.read_text()), "app")
    comfy_page.run_command("Comfy.ToggleLinear")
    text = comfy_page.page.evaluate("() => document.body.innerText")
    comfy_page.page.screenshot(path=comfy_page.screenshots / "app.png")
    for shown in ("checkpoint", "instruction", "profile"):
        assert shown in text

"""The blueprints of one node that edits, and what templates show in the page's app mode."""

import json

import pytest
from mmada_parallel.tests.front_ends import NEWEST
from mmada_parallel.tests.hosts import PACK_ROOT

from .conftest import serve_page
from .test_finding import RESULTS

EDIT, INPAINT = "Edit with MMaDA-Parallel", "Inpaint under a mask with MMaDA-Parallel"
TEMPLATE = PACK_ROOT / "workflows" / "Edit an image.json"
BUILD = """(masked) => {
    const [edit] = app.graph.nodes
    const add = (type, x) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, 120]
        app.graph.add(node)
        return node
    }
    add('MMaDAParallelDemoScene', -300).connect(0, edit, 0)
    const mask = add('SolidMask', -700)
    mask.widgets.find(({ name }) => name === 'width').value = 128
    mask.widgets.find(({ name }) => name === 'height').value = 128
    if (masked) mask.connect(0, edit, 1)
    edit.connect(0, add('PreviewImage', 800), 0)
    edit.connect(1, add('PreviewAny', 1200), 0)
}"""
PROMOTED = "() => app.graph.nodes[0].widgets.map(({ name, label }) => label ?? name)"
SHOWN = """() => {
    const isViewer = ({ type }) => type === 'denoise_viewer'
    const [viewer, more] = app.graph.nodes[0].widgets.filter(isViewer)
    const { element } = viewer
    const steps = element.querySelector('input')
    return { alone: !more, picture: element.querySelector('canvas').checkVisibility(),
        words: element.querySelectorAll('.words span').length, ended: !steps.disabled,
        saved: app.graph.serialize().nodes[0].widgets_values.length }
}"""
SET = """([name, value]) => {
    const widget = app.graph.nodes[0].widgets.find((one) => (one.label ?? one.name).includes(name))
    widget.value = value
}"""


@pytest.fixture(scope="module", params=[None, pytest.param(NEWEST, marks=pytest.mark.exhaustive)])
def comfy(request, tmp_path_factory):
    yield from serve_page("current", request.param, tmp_path_factory)


EXHAUSTIVE = pytest.mark.exhaustive


@pytest.mark.parametrize(
    "name, vue",
    [
        (EDIT, True),
        pytest.param(EDIT, False, marks=EXHAUSTIVE),
        pytest.param(INPAINT, False, marks=EXHAUSTIVE),
    ],
)
def test_a_blueprint_is_listed_and_edits(comfy_page, name, vue):
    page = comfy_page.page
    entries = comfy_page.server.get("/global_subgraphs")
    (entry,) = [key for key, one in entries.items() if one["name"] == name]
    assert entries[entry]["source"] == "custom_node"
    data = comfy_page.server.get(f"/global_subgraphs/{entry}")["data"]
    assert "proxyWidgets" not in data  # which the page loses where it renumbers nodes
    comfy_page.open(vue=vue)
    comfy_page.run_command("Workspace.SearchBox.Toggle")
    page.keyboard.type(name.lower()[:9])
    page.wait_for_timeout(1200)
    assert any(name in result for result in page.evaluate(RESULTS))
    page.keyboard.press("Escape")
    comfy_page.load(json.loads(data), "blueprint")
    assert comfy_page.missing_nodes() == []
    assert page.evaluate(PROMOTED) == ["checkpoint", "instruction", "seed", "profile"]
    page.evaluate(BUILD, name == INPAINT)
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
    shown = page.evaluate(SHOWN)
    assert shown.pop("words") > 3
    assert shown == {"alone": True, "picture": True, "ended": True, "saved": 4}
    renderer = "vue" if vue else "canvas"
    comfy_page.screenshot(f"blueprint-{name}-{renderer}")
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
